"""Evaluation examples are found in documents by 8-grams, taken out, and what remains is counted."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.decontaminate import Checker, Index, build_index, load_index, read_examples, report
from puna.errors import PunaError
from puna.recipe import Corpus

QUESTION = "A train leaves the old station at nine and travels forty miles an hour until it meets another one."
OTHER = "Which of these three metals, when it is heated slowly in the air, loses its colour first of all?"
FILLER = "the weather was mild that year and people of the valley spoke about little else in the long evenings"


def knobs(*sets: object, **values) -> Corpus:
    return Corpus(evaluation_sets=[str(path) for path in sets], **values)


def write(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_index(chosen: Corpus, folder: Path) -> Index:
    made = build_index(chosen, folder)
    assert made
    return load_index(made)


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    one = write(tmp_path / "trains.jsonl", {"question": QUESTION, "id": "x 17"}, {"question": "Too short", "id": "y"})
    return [one, write(tmp_path / "metals.jsonl", {"text": OTHER, "choices": ["lead", "tin", "zinc"]})]


def test_a_document_that_holds_an_example_goes(sets: list[Path], tmp_path: Path):
    chosen = knobs(f"{sets[0]}#question", sets[1])
    check = Checker(make_index(chosen, tmp_path / "index"), chosen)
    overlap = check(f"{FILLER}. {QUESTION.upper()} {FILLER}")  # without case and punctuation
    assert overlap
    assert (overlap.text, overlap.detail) == (None, "trains 0 1.00")
    assert check(f"{FILLER} Which of these three metals: when it is heated, slowly, in the air loses its colour.")
    assert check(FILLER) is None
    assert check("") is None
    assert check("Too short") is None
    assert check(" ".join(QUESTION.split()[:9]) + FILLER) is None  # nine of its nineteen words


def test_the_threshold_is_the_share_of_the_example_s_words(tmp_path: Path):
    words = [f"w{i}" for i in range(40)]
    path = write(tmp_path / "set.jsonl", {"text": " ".join(words)})
    for threshold, length, held in ((0.5, 20, True), (0.5, 19, False), (0.2, 8, True), (0.2, 7, False)):
        chosen = knobs(path, contamination_threshold=threshold)
        check = Checker(make_index(chosen, tmp_path / "index"), chosen)
        assert bool(check(f"x {' '.join(words[5 : 5 + length])} y")) is held


def test_passages_are_cut_by_lines(sets: list[Path], tmp_path: Path):
    chosen = knobs(f"{sets[0]}#question", contamination_removes="passage")
    check = Checker(make_index(chosen, tmp_path / "index"), chosen)
    half = QUESTION[:50], QUESTION[50:]
    overlap = check(f"İİ first\n\n{FILLER}\nsaid: {half[0]}\n{half[1]}\n{FILLER} again\n")
    assert overlap
    assert overlap.text == f"İİ first\n\n{FILLER}\n{FILLER} again\n"
    alone = check(QUESTION)
    assert alone
    assert alone.text is None


def test_the_report_counts_before_and_after(sets: list[Path], tmp_path: Path):
    chosen = knobs(f"{sets[0]}#question", sets[1], contamination_threshold=0.8)
    index = make_index(chosen, tmp_path / "index")
    one, two = Checker(index, chosen), Checker(index, chosen)
    words = OTHER.split()
    assert one(QUESTION)
    assert not one(" ".join(words[:12]))
    assert not two(" ".join(words[9:]) + " lead tin")  # together they hold the whole example, which neither does
    told = report(index, [c.seen()[0] for c in (one, two)], [c.seen()[1] for c in (one, two)], chosen)
    assert told["trains"] == {
        "examples": 2, "too_short": 1, "before": 0.5, "after": 0.0,
        "at": {"0.2": [0.5, 0.0], "0.4": [0.5, 0.0], "0.6": [0.5, 0.0], "0.8": [0.5, 0.0]},
    }  # fmt: skip
    assert (told["metals"]["before"], told["metals"]["after"]) == (1.0, 1.0)


def share_by_hand(example: str, documents: list[str], n: int) -> float:
    words = example.split()
    runs = {tuple(d.split()[i : i + n]) for d in documents for i in range(len(d.split()) - n + 1)}
    covered = {j for i in range(len(words) - n + 1) if tuple(words[i : i + n]) in runs for j in range(i, i + n)}
    return len(covered) / max(1, len(words))


letters = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@settings(deadline=None)
@given(st.lists(letters, min_size=1, max_size=5), st.lists(letters, max_size=5), st.sampled_from([0.3, 0.5, 1.0]))
def test_against_a_reference(tmp_path_factory, examples: list[str], documents: list[str], threshold: float):
    folder = tmp_path_factory.mktemp("set")
    path = write(folder / "set.jsonl", *({"text": example} for example in examples))
    chosen = knobs(path, contamination_ngram=3, contamination_threshold=threshold)
    index = make_index(chosen, folder / "index")
    check = Checker(index, chosen)
    overlaps = [check(document) for document in documents]
    for document, overlap in zip(documents, overlaps):
        worst = max(share_by_hand(example, [document], 3) for example in examples)
        assert (overlap is not None) == (worst >= threshold)
    clean = [document for document, overlap in zip(documents, overlaps) if not overlap]
    told = report(index, [check.seen()[0]], [check.seen()[1]], chosen)["set"]
    for when, held in (("before", documents), ("after", clean)):
        shares = [share_by_hand(example, held, 3) for example in examples]
        assert told[when] == round(np.mean([share >= threshold for share in shares]), 4)


def test_the_index_is_made_once_and_mapped(sets: list[Path], tmp_path: Path):
    assert build_index(knobs(), tmp_path / "none") is None
    folder = build_index(knobs(*sets), tmp_path / "one")
    assert folder
    assert isinstance(load_index(folder).grams, np.memmap)
    other = build_index(knobs(*sets), tmp_path / "two")
    assert other
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (other / path.name).read_bytes()
    stamp = (folder / "grams.npy").stat().st_mtime_ns
    assert build_index(knobs(*sets), folder) == folder
    assert (folder / "grams.npy").stat().st_mtime_ns == stamp


def test_fields_names_and_what_is_wrong_with_a_set(sets: list[Path], tmp_path: Path):
    assert list(read_examples(f"{sets[1]}#choices")) == ["lead\ntin\nzinc"]
    assert list(read_examples(str(sets[1]))) == [f"{OTHER}\nlead\ntin\nzinc"]
    with pytest.raises(PunaError, match=r"record 1 of .*trains.jsonl has no field 'answer'"):
        build_index(knobs(f"{sets[0]}#question,answer"), tmp_path / "index")
    with pytest.raises(PunaError, match=r"absent.jsonl: no such file"):
        build_index(knobs(tmp_path / "absent.jsonl"), tmp_path / "index")
    (tmp_path / "sub").mkdir()
    twin = write(tmp_path / "sub" / "trains.jsonl", {"a": QUESTION})
    assert list(make_index(knobs(sets[0], twin), tmp_path / "index").sets) == ["trains", str(twin)]


def test_real_questions_are_found_in_a_text_that_quotes_them(shared_data, tmp_path: Path):
    paths = sorted(shared_data("eval").rglob("*mmlu*val*.jsonl*"))
    chosen = knobs(*paths[:1])
    index = make_index(chosen, tmp_path / "index")
    check = Checker(index, chosen)
    long = [one for one in read_examples(str(paths[0])) if len(one.split()) > 20]
    pick = random.Random(0)
    assert all(check(f"{FILLER}\n{one}\n{FILLER}") for one in pick.sample(long, 50))
    assert not any(check(f"{FILLER} {n} {FILLER}") for n in range(50))
