"""Duplicates over the whole corpus, against brute force with exact Jaccard similarity."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus import near, tables
from puna.corpus.dedup import KEYS, find_duplicates, normalise_url, url_key
from puna.corpus.minhash import jaccard, shingle_sets, text_keys
from puna.errors import PunaError
from puna.recipe import Corpus

from .conftest import prose

KNOBS = Corpus.model_validate({})
# With bands of one row every pair at the threshold is a candidate, so that the result is that of brute force.
ALL_PAIRS = Corpus.model_validate({"minhash_permutations": 32, "minhash_bands": 32})


@dataclass(frozen=True)
class Doc:
    text: str
    url: str = ""
    date: str = ""
    language: str = "en"


def variants(seed: int, changes: tuple[int, ...], sentences: int = 20) -> list[str]:
    """A text, and copies in which so many of its words are replaced, one here and one there."""
    words = prose(seed, sentences).split()
    texts = [" ".join(words)]
    for number, count in enumerate(changes):
        pick = random.Random(f"{seed} {number}")
        copy = list(words)
        for place in pick.sample(range(len(copy)), count):
            copy[place] = f"changed{pick.randrange(10**6)}"
        texts.append(" ".join(copy))
    return texts


def write_keys(docs: list[Doc], folder: Path, knobs: Corpus, shard: int = 100) -> list[Path]:
    """Documents numbered 0, 1, 2 ..., so many to a file."""
    folder.mkdir(exist_ok=True)
    paths = []
    for start in range(0, len(docs), shard):
        here = docs[start : start + shard]
        keys = text_keys([doc.text for doc in here], knobs)
        table = pa.table(
            {
                "doc": range(start, start + len(here)),
                "url_key": pa.array([url_key(doc.url) for doc in here], pa.uint64()),
                "date": [doc.date for doc in here],
                "language": [doc.language for doc in here],
                "characters": [len(doc.text) for doc in here],
                "digest": keys.digests,
                "signature": [signature.tobytes() for signature in keys.signatures],
            },
            schema=KEYS,
        )
        paths.append(folder / f"{start:06d}.parquet")
        pq.write_table(table, paths[-1])
    return paths


def duplicates(docs: list[Doc], work: Path, knobs: Corpus = KNOBS) -> dict[int, tuple[str, str, int]]:
    """Document -> step, reason, other."""

    def texts(wanted: np.ndarray) -> list[str]:
        assert (np.diff(wanted) > 0).all()
        return [docs[doc].text for doc in wanted]

    path = find_duplicates(write_keys(docs, work / "keys", knobs), texts, knobs, work)
    rows = pq.read_table(path).to_pylist()
    assert [row["doc"] for row in rows] == sorted({row["doc"] for row in rows})
    return {row["doc"]: (row["step"], row["reason"], row["other"]) for row in rows}


def brute_force(docs: list[Doc], knobs: Corpus) -> dict[int, str]:
    """Document -> step at which it is dropped, with every pair compared."""
    dropped: dict[int, str] = {}
    for doc, mine in enumerate(docs):
        for other, its in enumerate(docs):
            newer = its.date > mine.date or (its.date == mine.date and other < doc)
            if mine.url and normalise_url(mine.url) == normalise_url(its.url) and newer:
                dropped[doc] = "url"
    sets = shingle_sets([doc.text for doc in docs], knobs.minhash_ngram)
    digests = text_keys([doc.text for doc in docs], knobs).digests
    seen: set[tuple[str, bytes]] = set()
    kept: list[int] = []
    by_date = sorted((doc for doc in range(len(docs)) if doc not in dropped), key=lambda d: docs[d].date, reverse=True)
    best_first = sorted(by_date, key=lambda doc: -len(docs[doc].text))
    for doc in best_first:
        if (docs[doc].language, digests[doc]) in seen:
            dropped[doc] = "exact"
        seen.add((docs[doc].language, digests[doc]))
    for doc in best_first:
        if doc in dropped:
            continue
        rivals = [other for other in kept if docs[other].language == docs[doc].language]
        if any(jaccard(sets[doc], sets[other]) >= knobs.minhash_threshold for other in rivals):
            dropped[doc] = "near"
        else:
            kept.append(doc)
    return dropped


@pytest.fixture(scope="module")
def crowd() -> list[Doc]:
    """Texts with copies of every similarity, under few addresses, in two languages."""
    texts = [text for seed in range(40) for text in variants(seed, (0, 1, 2, 4, 6, 8, 12, 20))]
    pick = random.Random(3)
    pick.shuffle(texts)
    return [
        Doc(
            text,
            pick.choice(["", f"https://example.org/{pick.randrange(300)}"]),
            pick.choice(["", "2023-01-01", "2024-05-06T07:08:09Z"]),
            "en" if number % 5 else "de",
        )
        for number, text in enumerate(texts)
    ]


def test_against_brute_force(crowd: list[Doc], tmp_path: Path) -> None:
    found = duplicates(crowd, tmp_path, ALL_PAIRS)
    assert {doc: step for doc, (step, _, _) in found.items()} == brute_force(crowd, ALL_PAIRS)
    assert {step for step, _, _ in found.values()} == {"url", "exact", "near"}
    sets = shingle_sets([doc.text for doc in crowd], KNOBS.minhash_ngram)
    for doc, (step, reason, other) in found.items():
        if step == "url":
            assert reason == "older-version"
            assert found.get(other, ("",))[0] != "url"
            assert normalise_url(crowd[other].url) == normalise_url(crowd[doc].url)
            assert crowd[other].date >= crowd[doc].date
        else:
            assert reason == f"{step}-copy"
            assert crowd[other].language == crowd[doc].language
            assert found.get(other, ("",))[0] not in ("url", step)
            assert jaccard(sets[doc], sets[other]) >= (1.0 if step == "exact" else KNOBS.minhash_threshold)


def test_real_paraphrases_against_brute_force(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Pairs of sentences from the news, which often have most of their words in common."""
    with gzip.open(shared_data("dedup/mrpc_validation.jsonl.gz"), "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file][:120]
    docs = [Doc(pair[side]) for pair in pairs for side in ("sentence1", "sentence2")]
    words = Corpus.model_validate(
        {"minhash_permutations": 32, "minhash_bands": 32, "minhash_ngram": 1, "minhash_threshold": 0.7}
    )
    expected = brute_force(docs, words)
    assert len(expected) > 10
    assert {doc: step for doc, (step, _, _) in duplicates(docs, tmp_path, words).items()} == expected


def test_recall_and_precision_of_the_default_bands(tmp_path: Path) -> None:
    docs = [Doc(text) for seed in range(40) for text in variants(seed, (1, 2, 3, 4, 5, 6, 7, 9))]
    found = duplicates(docs, tmp_path)
    expected = brute_force(docs, KNOBS)
    assert len(expected) > 150
    assert len(found.keys() & expected.keys()) >= 0.98 * len(expected)
    # precision is exact: what is dropped is as similar to a kept document as the threshold says
    sets = shingle_sets([doc.text for doc in docs], KNOBS.minhash_ngram)
    for doc, (_, _, other) in found.items():
        assert other not in found
        assert jaccard(sets[doc], sets[other]) >= KNOBS.minhash_threshold


def test_templated_pages_are_not_chained_together(tmp_path: Path) -> None:
    """Each shares most of its text with the next: only the direct likeness to a kept one counts."""
    words = [f"word{number}" for number in range(1000)]
    docs = [Doc(" ".join(words[start : start + 500])) for start in range(0, 400, 25)]
    found = duplicates(docs, tmp_path, ALL_PAIRS)
    sets = shingle_sets([doc.text for doc in docs], KNOBS.minhash_ngram)
    assert jaccard(sets[0], sets[1]) > KNOBS.minhash_threshold > jaccard(sets[0], sets[3])
    assert 4 <= len(docs) - len(found) < len(docs)
    for doc, (_, _, other) in found.items():
        assert other not in found
        assert jaccard(sets[doc], sets[other]) >= KNOBS.minhash_threshold


def test_the_file_is_the_same_to_the_byte(crowd: list[Doc], tmp_path: Path) -> None:
    """For any number of threads, any cut into shards, any limit of memory."""
    made = set()
    for number, (workers, shard, memory) in enumerate([(1, 7, 4.0), (3, 100, 0.2), (4, 1000, 1.0)]):
        work = tmp_path / str(number)
        work.mkdir()
        knobs = Corpus.model_validate({"workers": workers, "memory_gb": memory})
        keys = write_keys(crowd, work / "keys", knobs, shard)
        path = find_duplicates(keys, lambda docs: [crowd[doc].text for doc in docs], knobs, work)
        assert sorted(child.name for child in work.iterdir()) == ["duplicates.parquet", "keys"]
        made.add(path.read_bytes())
    assert len(made) == 1


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    assert duplicates([], tmp_path) == {}
    assert duplicates([Doc("one text only", "https://example.org")], tmp_path) == {}


def test_signatures_of_another_recipe_are_refused(tmp_path: Path) -> None:
    keys = write_keys([Doc("some words")], tmp_path / "keys", Corpus.model_validate({"minhash_permutations": 64}))
    with pytest.raises(PunaError, match=r"256 bytes, but corpus\.minhash_permutations = 112 makes 448"):
        find_duplicates(keys, lambda docs: [], KNOBS, tmp_path)


@pytest.mark.parametrize("neighbours", [2, 32])
def test_pairs_of_a_band_however_it_is_cut_into_batches(
    neighbours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every document with the best of its bucket and with those just before it."""
    monkeypatch.setattr(near, "NEIGHBOURS", neighbours)
    monkeypatch.setattr(tables, "BATCH", 2048)
    sizes = np.random.default_rng(0).choice([1, 2, 3, 7, 40, 900], 60)
    sizes[-1] = 5000
    keys = np.repeat(np.arange(60, dtype=np.uint64) * 7, sizes)
    ranks = np.random.default_rng(1).permutation(len(keys))
    pq.write_table(pa.table({"rank": ranks, "band0": keys}), tmp_path / "bands.parquet")
    expected = set()
    for key in np.unique(keys):
        bucket = sorted(ranks[keys == key].tolist())
        expected |= {(bucket[0], other) for other in bucket[1:]}
        expected |= {(bucket[place - back], bucket[place]) for back in range(1, neighbours + 1)
                     for place in range(back, len(bucket))}  # fmt: skip
    with tables.connect(KNOBS, tmp_path) as db:
        batches = list(near._pairs(db, tmp_path / "bands.parquet", 0))
    found = {pair for batch in batches for pair in zip(batch["better"].tolist(), batch["worse"].tolist())}
    assert found == expected


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "2020", "2021"])), max_size=12))
def test_one_version_of_each_page_stays(tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[str, str]]) -> None:
    work = tmp_path_factory.mktemp("versions")
    one_band = Corpus.model_validate({"minhash_bands": 1})
    docs = [Doc(prose(number, 3), f"http://example.org/{path}", date) for number, (path, date) in enumerate(pages)]
    older = {doc: other for doc, (_, _, other) in duplicates(docs, work, one_band).items()}
    kept = [doc for doc in range(len(pages)) if doc not in older]
    assert sorted(pages[doc][0] for doc in kept) == sorted({path for path, _ in pages})
    for doc, newest in older.items():
        assert (pages[newest][1], -newest) == max((date, -n) for n, (path, date) in enumerate(pages)
                                                  if path == pages[doc][0])  # fmt: skip


SAME = (
    "https://example.org/a?b=1&a=2",
    "HTTP://Example.ORG/a?b=1&a=2#part",
    "https://example.org:443/a?b=1&a=2&utm_source=x&UTM_medium=y",
    "http://example.org:80/a?gclid=7&b=1&a=2",
    " https://example.org/a?b=1&a=2 ",
)
OTHER = ("https://example.org/A?b=1&a=2", "https://example.org:8080/a?b=1&a=2", "https://example.org/a?a=2&b=1",
         "https://www.example.org/a?b=1&a=2", "ftp://example.org/a?b=1&a=2", "https://example.org/a", "/a?b=1&a=2",
         "https://example.org/a?b=1&a=2&utm=1", "https://[broken/a", "https://example.org:port/")  # fmt: skip


def test_addresses_of_one_page_have_one_key() -> None:
    assert {url_key(url) for url in SAME} == {url_key(SAME[0])}
    assert len({url_key(url) for url in OTHER} | {url_key(SAME[0])}) == len(OTHER) + 1
    assert url_key("https://example.org") == url_key("https://example.org/?utm_source=x")
    assert url_key(" ") is None


@settings(deadline=None)
@given(st.text(), st.text(st.characters(exclude_categories=("C", "Z"))))
def test_any_text_has_a_key_and_fragments_do_not_count(address: str, fragment: str) -> None:
    assert (url_key(address) is None) == (not address.strip())
    assert url_key(f"https://example.org/a#{fragment}") == url_key("https://example.org/a")


def test_the_texts_are_fetched_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = [Doc(text) for seed in range(20) for text in variants(seed, (1, 2))]
    asked: list[int] = []

    def texts(wanted: np.ndarray) -> list[str]:
        asked.append(sum(len(docs[doc].text) for doc in wanted))
        return [docs[doc].text for doc in wanted]

    keys = write_keys(docs, tmp_path / "keys", KNOBS)
    whole = find_duplicates(keys, texts, KNOBS, tmp_path).read_bytes()
    assert len(asked) == 1
    asked.clear()
    monkeypatch.setattr(near, "TEXT_BATCH", 10_000)
    assert find_duplicates(keys, texts, KNOBS, tmp_path).read_bytes() == whole
    assert len(asked) > 5
    assert max(asked) < 10_000 + max(len(doc.text) for doc in docs)
