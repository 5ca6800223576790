"""fastText classifiers: trained to the byte, applied with thresholds, scored by the area under the curve."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus import quality
from puna.corpus.examples import area_under_curve, evaluate, precision_recall, quality_examples, sample
from puna.corpus.linear import FastText, train_fasttext
from puna.corpus.quality import judge, order_labels, score
from puna.corpus.records import read_records, read_texts
from puna.errors import PunaError
from puna.recipe import Corpus

WORDS = {
    "0": ["click", "buy", "cheap", "casino", "now", "free", "bonus", "login"],
    "1": ["theory", "history", "river", "species", "century", "population", "treaty", "language"],
}


def knobs(**values) -> Corpus:
    return Corpus(**values)


def text(label: str, seed: int, length: int = 30) -> str:
    """Mostly words of the label, and some that say nothing."""
    pick = random.Random(f"{label} {seed}")
    return " ".join(
        pick.choice(WORDS[label] if pick.random() < 0.6 else ["the", "of", "and", "a"]) for _ in range(length)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "quality.bin"
    train_fasttext(examples(), path, buckets=1000, dim=8)
    return str(path)


def examples() -> list[tuple[str, str]]:
    pairs = [(label, text(label, seed)) for label in "01" for seed in range(100)]
    random.Random(0).shuffle(pairs)
    return pairs


def test_a_classifier_tells_texts_apart_that_it_never_saw(model: str):
    texts = [text(label, seed) for label in "01" for seed in range(1000, 1040)]
    scores = score(model, texts)
    assert scores[:40].max() < 0.5 < scores[40:].min()


def test_training_again_gives_the_same_bytes(model: str, tmp_path: Path):
    train_fasttext(examples(), tmp_path / "again.bin", buckets=1000, dim=8)
    assert (tmp_path / "again.bin").read_bytes() == Path(model).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.bin"]
    train_fasttext(examples(), tmp_path / "other.bin", buckets=1000, dim=8, seed=1)
    assert (tmp_path / "other.bin").read_bytes() != Path(model).read_bytes()


def test_probabilities_sum_to_one_and_depend_on_their_own_text_alone(model: str):
    classifier = FastText(Path(model))
    texts = [text("0", 1), "", "語 \0 \n \u2028 café", text("1", 2), "__label__1 __label__0"]
    together = classifier.probabilities(texts)
    assert np.allclose(together.sum(1), 1)
    assert np.array_equal(together, np.concatenate([classifier.probabilities([one]) for one in texts]))


def test_a_text_cannot_spell_a_label(tmp_path: Path):
    train_fasttext([("a", "__label__c one two"), ("b", "__LABEL__d one three")] * 3, tmp_path / "m", dim=2)
    assert FastText(tmp_path / "m").labels == ["a", "b"]


def test_scales_of_numbers_are_averaged_and_single_labels_picked(tmp_path: Path):
    pairs = [(label, text("01"[label != "10"], seed)) for label in ("0", "10", "2") for seed in range(20)]
    path = str(tmp_path / "scale")
    train_fasttext(pairs, Path(path), dim=4, buckets=100)
    probabilities = FastText(Path(path)).probabilities([text("1", 99)])[0]
    assert order_labels(["hq", "10", "2", "0", "cc"]) == ["0", "2", "10", "cc", "hq"]
    assert score(path, [text("1", 99)])[0] == pytest.approx(probabilities[2] + 0.2 * probabilities[1])
    assert score(f"{path}#2", [text("1", 99)])[0] == pytest.approx(probabilities[1])
    with pytest.raises(PunaError, match="has no label 'hq'; it has 0, 2, 10"):
        score(f"{path}#hq", ["x"])


def test_labels_that_are_no_numbers_must_be_named(tmp_path: Path):
    train_fasttext([("hq", "one two"), ("cc", "three four")] * 5, tmp_path / "m", dim=2)
    with pytest.raises(PunaError, match=r"no numbers; name the good one: .*#LABEL"):
        score(str(tmp_path / "m"), ["one"])
    assert score(f"{tmp_path / 'm'}#hq", ["one"]).shape == (1,)


def test_a_foreign_model_gets_its_text_as_it_was_trained_on(tmp_path: Path):
    import fasttext

    (tmp_path / "raw").write_text("__label__hq Good, Text\n__label__cc good text\n" * 50)
    foreign = fasttext.train_supervised(str(tmp_path / "raw"), dim=10, epoch=50, lr=1.0, thread=10, verbose=0, bucket=0)
    foreign.save_model(str(tmp_path / "foreign.bin"))
    assert score(f"{tmp_path / 'foreign.bin'}#hq", ["Good,\nText", "good text"]).round().tolist() == [1, 0]
    train_fasttext([("hq", "Good, Text"), ("cc", "bad text")] * 50, tmp_path / "ours.bin")
    assert FastText(tmp_path / "ours.bin").ours


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "broken.bin").write_bytes(content)
    with pytest.raises(PunaError, match=r"broken.bin: no fastText classifier"):
        score(str(tmp_path / "broken.bin"), ["x"])
    with pytest.raises(PunaError, match=r"absent.bin: no fastText classifier"):
        score(str(tmp_path / "absent.bin"), ["x"])


def test_training_needs_two_labels_of_one_word(tmp_path: Path):
    with pytest.raises(PunaError, match="two labels at least"):
        train_fasttext([("1", "text")], tmp_path / "m")
    with pytest.raises(PunaError, match="'a b' cannot be a label"):
        train_fasttext([("a b", "text")], tmp_path / "m")
    assert not list(tmp_path.iterdir())


# -- judging --


def test_nothing_is_judged_without_models():
    assert judge(["a", "b"], ["en", "de"], knobs()) == [quality.Judgement()] * 2


def test_low_quality_goes_and_other_languages_pass(model: str):
    texts = [text("1", 500), text("0", 500), text("0", 501)]
    good, bad, german = judge(texts, ["en", "en", "de"], knobs(quality_models={model: 0.5}))
    assert (good.reason, bad.reason, german.reason) == (None, "low-quality", None)
    assert bad.detail == f"quality.bin {bad.quality:.3f}"
    assert german.quality is None
    assert good.quality is not None
    assert bad.quality is not None
    assert bad.quality < 0.5 <= good.quality


def test_every_quality_model_must_be_passed_and_the_lowest_score_is_kept(model: str):
    one = judge([text("1", 500)], ["en"], knobs(quality_models={model: 0.5, f"{model}#0": 0.5}))[0]
    assert one.reason == "low-quality"
    assert one.detail.startswith("quality.bin#0 0.")
    assert one.quality == pytest.approx(float(score(f"{model}#0", [text("1", 500)])[0]))


def test_topics_and_parts(model: str, tmp_path: Path):
    names = {"0": "shopping", "1": "science"}
    train_fasttext([(names[label], one) for label, one in examples()], tmp_path / "topic", dim=8, buckets=1000)
    train_fasttext([("01"[label == "0"], one) for label, one in examples()], tmp_path / "not", dim=8, buckets=1000)
    chosen = knobs(topic_model=str(tmp_path / "topic"), part_models={"math": model, "code": str(tmp_path / "not")})
    texts = [text("1", 700), text("0", 700)]
    assert [(j.topic, j.part) for j in judge(texts, ["en"] * 2, chosen)] == [("science", "math"), ("shopping", "code")]
    strict = chosen.model_copy(update={"part_threshold": 1.0})
    assert [j.part for j in judge([text("1", 700)[:30]], ["en"], strict)] == ["general"]
    only_math = chosen.model_copy(update={"part_models": {"math": model}})
    assert [j.part for j in judge(texts, ["en"] * 2, only_math)] == ["math", None]


def test_the_digest_follows_the_content_of_models_and_sets(tmp_path: Path):
    (tmp_path / "m.bin").write_bytes(b"one")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jsonl").write_text("{}")
    chosen = knobs(quality_models={f"{tmp_path}/m.bin#hq": 0.5}, evaluation_sets=[f"{tmp_path}/set#text"])
    first = quality.outside_digest(chosen)
    assert quality.outside_digest(chosen.model_copy(update={"quality_models": {f"{tmp_path}/m.bin": 0.1}})) == first
    (tmp_path / "m.bin").write_bytes(b"two")
    second = quality.outside_digest(chosen)
    (tmp_path / "set" / "a.jsonl").write_text("{} ")
    assert len({first, second, quality.outside_digest(chosen), quality.outside_digest(knobs())}) == 4
    (tmp_path / "m.bin").unlink()
    with pytest.raises(PunaError, match=r"m.bin: no such file"):
        quality.outside_digest(chosen)


def test_wrong_knobs_are_named():
    with pytest.raises(ValueError, match=r"part_models names 'law'; it can name math and code"):
        knobs(part_models={"law": "x"})
    with pytest.raises(ValueError, match=r"quality_models = {'m': 7.0}: must be from 0 to 1"):
        knobs(quality_models={"m": 7})
    with pytest.raises(ValueError, match="need a topic_model"):
        knobs(max_topic_share=0.5)


# -- examples and records --


def test_examples_are_balanced_and_shuffled_by_content(tmp_path: Path):
    good, bad = [f"good {i}" for i in range(30)], [f"bad {i}" for i in range(500)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in [*bad, *good, "", " "]))
    with gzip.open(tmp_path / "good.jsonl.gz", "wt") as handle:
        handle.writelines(json.dumps({"text": one}) + "\n" for one in good * 2)
    pairs = quality_examples(tmp_path / "good.jsonl.gz", tmp_path / "bad.jsonl", 100, 0)
    assert sorted(one for label, one in pairs if label == "1") == sorted(good)
    assert len({one for label, one in pairs if label == "0"} & set(bad)) == 30 == len(pairs) / 2
    assert 5 < sum(label == "1" for label, _ in pairs[:30]) < 25
    (tmp_path / "empty").mkdir()
    with pytest.raises(PunaError, match=r"empty: .*no records"):
        quality_examples(tmp_path / "empty", tmp_path / "bad.jsonl", 100, 0)


@given(st.lists(st.text("abc", min_size=1, max_size=3)), st.integers(1, 10), st.randoms())
def test_a_sample_depends_on_the_set_of_texts_alone(texts: list[str], limit: int, shuffler: random.Random):
    chosen = sample(texts, limit, 7)
    other = texts * 2
    shuffler.shuffle(other)
    assert sample(other, limit, 7) == chosen
    assert len(chosen) == len(set(chosen)) == min(limit, len(set(texts)))


def test_records_of_each_kind(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    pq.write_table(pa.table({"text": ["three"], "n": [3]}), tmp_path / "b.parquet")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_bytes(b"fo\xffur\nlines")
    (tmp_path / "ignored.bin").write_bytes(b"x")
    assert list(read_texts(tmp_path)) == ["one", "two", "three", "fo\N{REPLACEMENT CHARACTER}ur\nlines"]
    assert list(read_records(tmp_path / "b.parquet")) == [{"text": "three", "n": 3}]
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text"\n')
    with pytest.raises(PunaError, match=r"a.jsonl, line 2: no JSON"):
        list(read_texts(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(PunaError, match="record 1 has no text in the field 'text'; it has body"):
        list(read_texts(tmp_path))
    for name in ("absent.jsonl", "ignored.bin"):
        with pytest.raises(PunaError, match=name):
            list(read_texts(tmp_path / name))


# -- measures --


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2))
def test_area_under_curve_is_the_chance_that_a_positive_is_above_a_negative(cases: list[tuple[int, bool]]):
    scores, positive = np.array([c[0] for c in cases]), np.array([c[1] for c in cases])
    good, bad = scores[positive], scores[~positive]
    if not len(good) or not len(bad):
        with pytest.raises(ValueError, match="both classes"):
            area_under_curve(scores, positive)
        return
    wins = (good[:, None] > bad).mean() + (good[:, None] == bad).mean() / 2
    assert area_under_curve(scores, positive) == pytest.approx(wins)


def test_precision_and_recall():
    scores, positive = np.array([0.9, 0.8, 0.5, 0.1]), np.array([True, False, True, True])
    assert precision_recall(scores, positive, 0.5) == (2 / 3, 2 / 3)
    assert precision_recall(scores, positive, 1.0) == (0.0, 0.0)


def test_evaluation_of_scores_labels_and_single_labels(model: str, tmp_path: Path):
    pairs = [(label, text(label, seed)) for label in "01" for seed in range(300, 320)]
    result = evaluate(model, pairs)
    assert (result["examples"], result["auc"]) == (40, 1.0)
    assert result["thresholds"][4] == (0.5, 1.0, 1.0)
    assert evaluate(f"{model}#0", pairs)["auc"] == 1.0
    train_fasttext([("ab"[int(label)], one) for label, one in examples()], tmp_path / "m", dim=8, buckets=1000)
    swapped = [("ba"[int(label)] if n == 0 else "ab"[int(label)], one) for n, (label, one) in enumerate(pairs)]
    result = evaluate(str(tmp_path / "m"), swapped)
    assert result == {"examples": 40, "accuracy": 39 / 40, "labels": [("a", 19, 0.95, 1.0), ("b", 21, 1.0, 20 / 21)]}


def test_people_s_labels_are_learned_a_little(shared_data, tmp_path: Path):
    """225 pages that people labelled keep or drop: few to learn from, yet better than chance."""
    rows = list(read_records(shared_data("quality_labels") / "dclm_majority_data.jsonl.gz"))
    train, test = rows[::2], rows[1::2]
    train_fasttext(((str(row["label"]), row["text"]) for row in train), tmp_path / "m", epochs=40, ngrams=1)
    scores = score(str(tmp_path / "m"), [row["text"] for row in test])
    assert area_under_curve(scores, np.array([row["label"] == 1 for row in test])) > 0.6
