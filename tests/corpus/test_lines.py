"""Repeated lines, against a count in plain Python."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.lines import FrequentLines, buckets, count_lines, frequent_lines, line_keys
from puna.recipe import Corpus

LINES = st.sampled_from(
    ["", "  ", "menu", " menu ", "\tmenu\r", "cookies", "text é", "日本", "lone \ud800", "a b", "z"]
)
DOCS = st.lists(st.tuples(st.lists(LINES, max_size=6).map("\n".join), st.sampled_from(["en", "de"])), max_size=30)


KNOBS = Corpus.model_validate({})


def run(docs: list[tuple[str, str]], work: Path, knobs: Corpus, shard: int = 4) -> list[str]:
    """The whole step over documents (text, language), so many to a shard."""
    tables, shards, before = [], [], Counter[str]()
    for start in range(0, len(docs), shard):
        texts, languages = map(list, zip(*docs[start : start + shard]))
        numbers = buckets(languages, before, knobs)
        before.update(languages)
        lines = line_keys(texts)
        shards.append((texts, lines, languages, numbers))
        tables.append(work / f"{start}.parquet")
        pq.write_table(count_lines(lines, languages, numbers), tables[-1])
    frequent = FrequentLines(frequent_lines(tables, knobs, work))
    return [text for args in shards for text in frequent.drop(*args)]


def brute_force(docs: list[tuple[str, str]], knobs: Corpus) -> list[list[str]]:
    """The lines that stay of each document, without blank ones."""
    seen, before, groups = Counter(), Counter(), []
    for text, language in docs:
        groups.append((language, before[language] // knobs.line_bucket))
        before[language] += 1
        seen.update((groups[-1], line.strip()) for line in text.split("\n"))
    return [
        [line for line in text.split("\n") if line.strip() and seen[group, line.strip()] <= knobs.line_repeats]
        for (text, _), group in zip(docs, groups)
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


@settings(deadline=None, max_examples=50)
@given(DOCS, st.integers(1, 8), st.sampled_from([2, 7, 1000]))
def test_against_brute_force(work: Path, docs: list[tuple[str, str]], repeats: int, bucket: int) -> None:
    """Lines, their order and their spaces."""
    knobs = Corpus.model_validate({"line_repeats": repeats, "line_bucket": bucket})
    found = run(docs, work, knobs)
    assert [[line for line in text.split("\n") if line.strip()] for text in found] == brute_force(docs, knobs)
    for (text, _), after in zip(docs, found):
        assert after is text or len(after) < len(text)


def test_a_line_is_dropped_from_the_seventh_time_on(tmp_path: Path) -> None:
    docs = [(f"share this\ntext {number}", "en") for number in range(7)]
    assert run(docs[:6], tmp_path, KNOBS) == [text for text, _ in docs[:6]]
    assert run(docs, tmp_path, KNOBS) == [f"text {number}" for number in range(7)]
    assert run(docs, tmp_path, Corpus.model_validate({"line_repeats": 0})) == [text for text, _ in docs]
    # in another language or bucket it counts apart
    assert run([*docs[:6], ("share this\nText", "de")], tmp_path, KNOBS) == [t for t, _ in docs[:6]] + [
        "share this\nText"
    ]
    assert run(docs, tmp_path, Corpus.model_validate({"line_bucket": 4})) == [text for text, _ in docs]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\n\nx\n\nb", "a\n\nb"),
        ("x\n\na", "a"),
        ("a\n\nx", "a"),
        ("a\nx\nb", "a\nb"),
        ("a\n\nx\n\ny\n\nb", "a\n\nb"),
        ("a\nx\n\nb", "a\n\nb"),
        ("a\n\nx\ny\nb", "a\n\nb"),
        ("x\n\ny", ""),
        ("a\n\nx\n\ny", "a"),
        ("\n  a\n\n\n  b\n", "\n  a\n\n\n  b\n"),
    ],
)
def test_no_gap_is_left_where_a_line_went(text: str, left: str, tmp_path: Path) -> None:
    """Beside texts that end and start otherwise."""
    docs = [("c\n", "en"), (text, "en"), ("\nd", "en"), ("x\ny\nx\ny\nx\ny", "en")]
    once = Corpus.model_validate({"line_repeats": 2})
    assert run(docs, tmp_path, once) == ["c\n", left, "\nd", ""]


def test_many_texts_are_hashed_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a\nb", "", "c\n\nd\n", "é\u2028f"]
    lines = line_keys(texts)
    assert list(map(len, lines.to_pylist())) == [2, 1, 4, 1]
    assert lines.to_pylist() == [line_keys([text])[0].as_py() for text in texts]
    monkeypatch.setattr("puna.corpus.lines.BLOCK", 3)
    assert line_keys(texts) == lines
    assert len(line_keys([])) == 0


def test_the_file_is_the_same_to_the_byte(tmp_path: Path) -> None:
    texts = [f"line {number % 500}\nline {number % 70}" for number in range(3000)]
    made = set()
    for workers, shard in ((1, 100), (4, 1000)):
        tables = []
        for start in range(0, len(texts), shard):
            here = texts[start : start + shard]
            tables.append(tmp_path / f"{start}.parquet")
            pq.write_table(count_lines(line_keys(here), ["en"] * len(here), np.zeros(len(here), np.int32)), tables[-1])
        made.add(frequent_lines(tables, Corpus.model_validate({"workers": workers}), tmp_path).read_bytes())
    assert len(made) == 1
    assert pq.read_table(tmp_path / "frequent_lines.parquet").num_rows == 70
