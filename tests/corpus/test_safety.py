"""Blocked addresses, dirty words, unsafe pages."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna.corpus import safety
from puna.corpus.filters import Text
from puna.corpus.safety import blocked_url, dirty_words, load_block_lists, outside_digest, parse_line, unsafe_scores
from puna.errors import PunaError
from puna.recipe import Corpus

from .conftest import prose


def knobs(**given: object) -> Corpus:
    return Corpus.model_validate(given)


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "entries"),
    [
        ("bad.com", ["bad.com"]),
        ("www.Bad.com ", ["bad.com"]),
        ("0.0.0.0 bad.com # a comment", ["bad.com"]),
        ("127.0.0.1\tbad.com other.com", ["bad.com", "other.com"]),
        ("::1 localhost", []),
        ("127.0.0.1 localhost", []),
        ("0.0.0.0 0.0.0.0", []),
        ("# a comment", []),
        ("", []),
        ("||bad.com^", ["bad.com"]),
        ("*.bad.com", ["bad.com"]),
        (".bad.com.", ["bad.com"]),
        ("http://www.bad.com/a/B/", ["bad.com/a/b"]),
        ("host.com/~user", ["host.com/~user"]),
        ("1.2.3.4", ["1.2.3.4"]),
    ],
)
def test_lines_of_lists(line: str, entries: list[str]) -> None:
    assert list(parse_line(line)) == entries


@pytest.fixture
def lists(tmp_path: Path) -> list[str]:
    """A hosts file, packed, and a folder as UT1 has it."""
    with gzip.open(tmp_path / "hosts.txt.gz", "wt") as file:
        file.write("# bad hosts\n0.0.0.0 bad.com\n0.0.0.0 www.worse.co.uk\n0.0.0.0 xn--bse-sna.de\n")
    ut1 = tmp_path / "blacklists"
    (ut1 / "gambling").mkdir(parents=True)
    (ut1 / "gambling" / "domains").write_text("casino.example\n203.0.113.9\n")
    (ut1 / "gambling" / "urls").write_text("host.org/~dice\nhost.org/play/roulette\n")
    (ut1 / "gambling" / "usage").write_text("black\n")
    return [str(tmp_path / "hosts.txt.gz"), str(ut1)]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://bad.com/", "hosts"),
        ("https://www.bad.com:8443/a?b#c", "hosts"),
        ("http://a.b.BAD.com", "hosts"),
        ("http://user:pass@bad.com./x", "hosts"),
        ("http://worse.co.uk/", "hosts"),
        ("http://böse.de/", "hosts"),
        ("bad.com/without/scheme", "hosts"),
        ("http://m.casino.example/", "gambling"),
        ("http://203.0.113.9/", "gambling"),
        ("http://host.org/~dice/today.html", "gambling"),
        ("http://www.host.org/play/roulette?red", None),
        ("http://host.org/play/Roulette/", "gambling"),
        ("http://notbad.com/", None),
        ("http://bad.com.org/", None),
        ("http://com/", None),
        ("http://co.uk/", None),
        ("http://9.203.0.113/", None),
        ("http://host.org/~dicey", None),
        ("http://host.org/", None),
        ("", None),
        ("file.html", None),
        ("http://[bad/", None),
        ("http://\ud800.com/", None),
    ],
)
def test_blocked_domains(lists: list[str], url: str, found: str | None) -> None:
    expected = None if found is None else ("blocked-domain", found)
    assert blocked_url(url, knobs(domain_block_lists=lists)) == expected
    assert blocked_url(url, knobs()) is None


def test_keywords_are_whole_words_of_the_address() -> None:
    rule = knobs(url_keywords=["Poker", "xxx"])
    assert blocked_url("https://online-poker.net/", rule) == ("blocked-keyword", "Poker")
    assert blocked_url("https://host.org/a/xxx_1.html", rule) == ("blocked-keyword", "xxx")
    assert blocked_url("https://pokerface.org/maxxx", rule) is None


def test_lists_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="there is no list at"):
        blocked_url("http://a.org", knobs(domain_block_lists=[str(tmp_path / "none")]))
    (tmp_path / "empty.txt").write_text("# nothing\nlocalhost\n")
    with pytest.raises(PunaError, match="lists no domain; one belongs on each line"):
        blocked_url("http://a.org", knobs(domain_block_lists=[str(tmp_path / "empty.txt")]))


def test_the_digest_changes_with_the_lists(tmp_path: Path, lists: list[str]) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "en").write_text("darn\n")
    given = knobs(domain_block_lists=lists, dirty_words=str(tmp_path / "words"))
    first = outside_digest(given)
    assert first == outside_digest(given) != outside_digest(knobs())
    (tmp_path / "words" / "en").write_text("drat\n")
    assert first != outside_digest(given)


def test_real_lists(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("safety_lists")
    names = [
        str(folder / f"{name}.txt.gz") for name in ("sinfonietta_adult_hosts", "ut1_gambling_domains", "ut1_adult_urls")
    ]
    assert [len(load_block_lists(name)[0].entries) > 1000 for name in names] == [True] * 3
    rule = knobs(domain_block_lists=names)
    assert blocked_url("https://m.007sportsbetting.com/odds", rule) == ("blocked-domain", "ut1_gambling_domains")
    assert blocked_url("https://1512h.itch.io/life-in-teyvat", rule) == ("blocked-domain", "ut1_adult_urls")
    assert blocked_url("https://1512h.itch.io/", rule) is None
    for url in (
        "https://en.wikipedia.org/wiki/Gambling",
        "https://docs.python.org/3/",
        "https://www.nature.com/articles",
    ):
        assert blocked_url(url, rule) is None


# -- dirty words -------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> str:
    folder = tmp_path / "dirty"
    folder.mkdir()
    (folder / "en").write_text("darn\nDrat\nheck\nblast it all\nblast off\n\n")
    (folder / "de.txt").write_text("Verflixt\nmist\nkruzitürken\n")
    with gzip.open(folder / "zh.gz", "wt", encoding="utf-8") as file:
        file.write("可恶\n混蛋\n该死\n")
    return str(folder)


@pytest.mark.parametrize(
    ("text", "language", "dropped"),
    [
        ("Darn! (drat) and HECK, he said.", "en", True),
        ("Blast it all, blast it all, he said, darn it, and blast off!", "en", True),
        ("darn it, drat, darn", "en", False),  # two words may have another meaning
        ("the darned and undaunted darning of dratted socks, blast it, in all checks", "en", False),
        (prose(1, 40) + " darn drat heck", "en", False),  # among many others
        ("Mist, verflixt, Kruzitürken!", "de", True),
        ("darn drat heck", "de", False),
        ("darn drat heck", "fr", False),  # no list
        ("可恶，该死的混蛋", "zh", True),
        ("今天天气很好", "zh", False),
    ],
)
def test_dirty_words(words: str, text: str, language: str, dropped: bool) -> None:
    found = dirty_words(Text(text, language), knobs(dirty_words=words))
    assert found == ("dirty-words" if dropped else None)
    assert dirty_words(Text(text, language), knobs()) is None


def test_the_share_is_a_knob_of_the_language(words: str) -> None:
    text = Text(prose(1, 40) + " darn drat heck", "en")
    strict = knobs(dirty_words=words, per_language={"en": {"max_dirty_word_fraction": 0.0}})
    assert dirty_words(text, strict) == "dirty-words"


def test_words_without_a_folder() -> None:
    with pytest.raises(PunaError, match=r"corpus.dirty_words = 'nowhere': there is no such folder"):
        dirty_words(Text("a", "en"), knobs(dirty_words="nowhere"))


def test_real_lists_spare_books(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """LDNOOBW's English list on stories: no false alarm, and abuse is seen."""
    with gzip.open(shared_data("safety_lists/ldnoobw.jsonl.gz"), "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            (tmp_path / row["lang"]).write_text("\n".join(row["words"]), encoding="utf-8")
    rule = knobs(dirty_words=str(tmp_path))
    with gzip.open(shared_data("corpus_en/fairytaleqa_stories.jsonl.gz"), "rt", encoding="utf-8") as file:
        stories = [row["text"] for row in map(json.loads, file)]
    assert len(stories) > 200
    assert not any(dirty_words(Text(story, "en"), rule) for story in stories)
    with gzip.open(shared_data("safety/hate_offensive_tweets.jsonl.gz"), "rt", encoding="utf-8") as file:
        tweets = [next(v for k, v in row.items() if k in ("text", "tweet")) for row in map(json.loads, file)]
    pages = [" ".join(tweets[start : start + 30]) for start in range(0, 3000, 30)]
    assert sum(dirty_words(Text(page, "en"), rule) is not None for page in pages) > 90


# -- unsafe pages ------------------------------------------------------------------------------------------------------


def test_a_classifier_scores_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(model: str, texts: list[str]) -> np.ndarray:
        asked.append(model)
        return np.array([len(text) / 10 for text in texts], np.float32)

    monkeypatch.setattr(safety, "score", score)
    assert unsafe_scores(["a"], knobs()) is None
    scores = unsafe_scores(["a", "abc"], knobs(unsafe_model="model#unsafe"))
    assert scores is not None
    np.testing.assert_allclose(scores, [0.1, 0.3])
    assert asked == ["model#unsafe"]
