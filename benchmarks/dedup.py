"""Duplicates: speed and accuracy beside other tools, and memory as the input grows. See README.md, Deduplication.

python benchmarks/dedup.py near|lines|memory [--texts FILE ...] [--documents N] [--rounds N]
"""

import argparse
import gzip
import json
import lzma
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from spread import spread

from puna.corpus.dedup import KEYS, find_duplicates
from puna.corpus.lines import HASHES, FrequentLines, count_lines, frequent_lines, line_keys
from puna.corpus.minhash import band_keys, jaccard, shingle_sets, text_keys
from puna.recipe import Corpus

WORDS = 480  # of a document
KNOBS = Corpus.model_validate({"workers": 1})


# -- documents ---------------------------------------------------------------------------------------------------------


def read_texts(paths: list[Path]) -> Iterator[str]:
    """Texts of JSONL files (`text`, or `main_content` as in WCXB), or made-up ones."""
    for path in paths:
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                text = record.get("text") or record["ground_truth"]["ground_truth"].get("main_content")
                if text:
                    yield text
    if not paths:
        pick = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        vocabulary = ["".join(pick.choices(letters, k=pick.randint(2, 9))) for _ in range(20_000)]
        weights = [1 / (rank + 10) for rank in range(len(vocabulary))]
        while True:
            lines = (" ".join(pick.choices(vocabulary, weights, k=24)).capitalize() + "." for _ in range(40))
            yield "\n".join(lines)


def passages(paths: list[Path], count: int) -> list[str]:
    """Whole lines of the texts, WORDS words together, an even choice of all."""
    found: list[str] = []
    for text in read_texts(paths):
        lines: list[str] = []
        words = 0
        for line in text.split("\n"):
            lines.append(line)
            words += len(line.split())
            if words >= WORDS:
                found.append("\n".join(lines))
                lines, words = [], 0
        if not paths and len(found) >= count:
            break
    return random.Random(0).sample(found, min(count, len(found)))


def changed(text: str, share: float, pick: random.Random) -> str:
    """A copy in which a share of the words is replaced, here and there."""
    words = text.split(" ")
    for place in pick.sample(range(len(words)), round(share * len(words))):
        words[place] = f"changed{pick.randrange(10**6)}"
    return " ".join(words)


# -- near copies -------------------------------------------------------------------------------------------------------


def near_copies(options: argparse.Namespace) -> None:
    """Families of a passage with five copies each, and pages that share three fifths of their text."""
    pick = random.Random(2)
    bases = passages(options.texts, options.documents)
    families = [[base, *(changed(base, pick.uniform(0, 0.05), pick) for _ in range(5))] for base in bases]
    frame = bases[0].split(" ")[: WORDS * 3 // 5]
    families.append([" ".join(frame + base.split(" ")[: WORDS * 2 // 5]) for base in bases[1:401]])
    texts = [text for family in families for text in family]
    sets = shingle_sets(texts, KNOBS.minhash_ngram)
    ends = np.cumsum([len(family) for family in families]).tolist()
    alike = {
        (a, b)
        for end, family in zip(ends, families)
        for a, b in combinations(range(end - len(family), end), 2)
        if jaccard(sets[a], sets[b]) >= 0.8
    }
    signatures = text_keys(texts, KNOBS).signatures
    for bands in (14, 16):
        _candidates(signatures, bands, alike, len(texts))
    expected = _greedy(alike, sorted(range(len(texts)), key=lambda doc: (-len(texts[doc]), doc)))
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.parquet"
        pq.write_table(_key_table(texts), keys)
        started = time.process_time()
        path = find_duplicates([keys], lambda docs: [texts[doc] for doc in docs], KNOBS, Path(folder))
        seconds = time.process_time() - started
        rows = pq.read_table(path).to_pylist()
    right = sum(jaccard(sets[row["doc"]], sets[row["other"]]) >= 0.8 for row in rows)
    recall = len({row["doc"] for row in rows} & expected) / len(expected)
    print(f"{len(texts)} documents, {len(alike)} pairs of similarity >= 0.8, {len(rows)} dropped: precision "
          f"{right / len(rows):.4f}, recall of what brute force drops {recall:.4f}; "
          f"{len(texts) / seconds:.0f} documents/s/core")  # fmt: skip


def _greedy(alike: set[tuple[int, int]], best_first: list[int]) -> set[int]:
    """What is dropped when each document is compared with all that were kept."""
    others = defaultdict(set)
    for a, b in alike:
        others[a].add(b)
        others[b].add(a)
    kept: set[int] = set()
    for doc in best_first:
        if not others[doc] & kept:
            kept.add(doc)
    return set(best_first) - kept


def _candidates(signatures: np.ndarray, bands: int, alike: set[tuple[int, int]], documents: int) -> None:
    """What bands alone would say, as tools without verification do."""
    pairs: set[tuple[int, int]] = set()
    parents = list(range(documents))

    def root(doc: int) -> int:
        while parents[doc] != doc:
            parents[doc] = doc = parents[parents[doc]]
        return doc

    for column in band_keys(signatures, bands).T:
        order = np.argsort(column, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
            pairs.update((min(a, b), max(a, b)) for a, b in combinations(bucket.tolist(), 2))
    for a, b in pairs:
        parents[root(a)] = root(b)
    sizes = Counter(map(root, range(documents)))
    both = len(pairs & alike)
    print(f"{bands} bands: recall of pairs {both / len(alike):.4f}, precision of candidates {both / len(pairs):.4f}, "
          f"largest group when joined {max(sizes.values())} documents")  # fmt: skip


def _key_table(texts: list[str]) -> pa.Table:
    keys = text_keys(texts, KNOBS)
    return pa.table(
        {
            "doc": range(len(texts)),
            "url_key": pa.nulls(len(texts), pa.uint64()),
            "date": [""] * len(texts),
            "language": ["en"] * len(texts),
            "characters": list(map(len, texts)),
            "digest": keys.digests,
            "signature": [signature.tobytes() for signature in keys.signatures],
        },
        schema=KEYS,
    )


# -- lines -------------------------------------------------------------------------------------------------------------


def line_speed(options: argparse.Namespace) -> None:
    """Count and drop, beside DuckDB on the texts and plain Python; all must leave the same lines."""
    pick = random.Random(3)
    bases = passages(options.texts, options.documents // 20)
    documents: list[str] = []
    while len(documents) < options.documents:  # one line in ten stays as it is and so recurs
        mark = f" {len(documents)}"
        for base in bases:
            lines = (line if not line.strip() or pick.random() < 0.1 else line + mark for line in base.split("\n"))
            documents.append("\n".join(lines))
    del documents[options.documents :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pq.write_table(pa.table({"doc": range(len(documents)), "text": documents}), folder / "texts.parquet")
        found = {
            "puna": lambda: _lines_puna(documents, folder),
            "duckdb on the texts": lambda: _lines_duckdb(folder),
            "plain Python": lambda: _lines_python(documents),
        }
        speeds: dict[str, list[float]] = {name: [] for name in found}
        ours: list[list[str]] = []
        for _ in range(options.rounds):
            for name, function in found.items():
                started = time.process_time()
                left = function()
                speeds[name].append(len(documents) / (time.process_time() - started))
                lines = [[line for line in text.split("\n") if line.strip()] for text in left]
                ours = ours or lines
                assert lines == ours, f"{name} leaves other lines"
    count = sum(text.count("\n") + 1 for text in documents)
    stay = sum(map(len, ours)) / count
    print(f"{len(documents)} documents of {sum(map(len, documents)) / len(documents):.0f} characters and "
          f"{count / len(documents):.1f} lines ({stay:.0%} stay and are not blank)")  # fmt: skip
    print("| | documents/s/core | lines/s/core | times plain Python |\n|---|---|---|---|")
    for name, of_name in speeds.items():
        ratio = spread([a / b for a, b in zip(of_name, speeds["plain Python"])])
        millions = spread([speed * count / len(documents) / 1e6 for speed in of_name], 2)
        print(f"| {name} | {spread(of_name, 0)} | {millions} M | {ratio} |")


def _lines_puna(documents: list[str], folder: Path, shard: int = 2000) -> list[str]:
    shards = [documents[start : start + shard] for start in range(0, len(documents), shard)]
    tables = [folder / f"{number}.lines" for number in range(len(shards))]
    hashed = [folder / f"{number}.rows" for number in range(len(shards))]
    for texts, path, rows in zip(shards, tables, hashed):
        lines = line_keys(texts)
        pq.write_table(count_lines(lines, ["en"] * len(texts), np.zeros(len(texts), np.int32)), path, **HASHES)
        pq.write_table(pa.table({"lines": lines}), rows, **HASHES)
    frequent = FrequentLines(frequent_lines(tables, KNOBS, folder))
    cut = (
        frequent.drop(
            texts,
            pq.read_table(rows)["lines"].combine_chunks(),
            ["en"] * len(texts),
            np.zeros(len(texts), np.int32),
        )
        for texts, rows in zip(shards, hashed)
    )
    return [text for texts in cut for text in texts]


def _lines_duckdb(folder: Path) -> list[str]:
    texts = f"read_parquet('{folder / 'texts.parquet'}')"
    query = f"""
        WITH split AS (SELECT doc, string_split(text, chr(10)) AS lines FROM {texts}),
             lines AS (SELECT doc, unnest(lines) AS line, generate_subscripts(lines, 1) AS place FROM split),
             keyed AS (SELECT *, trim(line, ' ' || chr(9) || chr(11) || chr(12) || chr(13)) AS key FROM lines),
             frequent AS (SELECT key FROM keyed WHERE key <> '' GROUP BY key HAVING count(*) > 6),
             kept AS (SELECT k.* FROM keyed k ANTI JOIN frequent f ON k.key = f.key)
        SELECT d.doc, string_agg(k.line, chr(10) ORDER BY place) AS text
        FROM {texts} d LEFT JOIN kept k USING (doc) GROUP BY d.doc ORDER BY d.doc"""
    with duckdb.connect(config={"threads": 1, "memory_limit": "4GB"}) as db:
        return [text or "" for text in db.sql(query).to_arrow_table()["text"].to_pylist()]


def _lines_python(documents: list[str]) -> list[str]:
    seen: Counter[str] = Counter()
    for text in documents:
        seen.update(line.strip() for line in text.split("\n"))
    del seen[""]
    return ["\n".join(line for line in text.split("\n") if seen[line.strip()] <= 6) for text in documents]


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> None:
    """Peak memory of the global steps in processes of their own, for 1, 4 and 16 times the documents."""
    print("| documents | step | peak memory, MB | of it before the step | CPU, microseconds/document |")
    print("|---|---|---|---|---|")
    for scale in (1, 4, 16):
        for step in ("duplicates", "lines"):
            child = [sys.executable, __file__, f"memory-{step}", "--documents", str(scale * options.documents)]
            subprocess.run(child, check=True)


def memory_of_one(options: argparse.Namespace) -> None:
    step = options.part.removeprefix("memory-")
    knobs = Corpus.model_validate({"workers": 2, "memory_gb": 0.25})
    work = Path(tempfile.mkdtemp())
    shard = 10_000
    starts = range(0, options.documents, shard)
    paths = [work / f"{start}.parquet" for start in starts]
    maker = _random_keys if step == "duplicates" else _random_lines
    for start, path in zip(starts, paths):
        pq.write_table(maker(start, shard), path)
    before, started = peak(), time.process_time()
    if step == "duplicates":
        found = find_duplicates(paths, lambda docs: [f"some words of {doc // 5}" for doc in docs.tolist()], knobs, work)
    else:
        found = frequent_lines(paths, knobs, work)
    seconds = time.process_time() - started
    assert pq.read_metadata(found).num_rows > options.documents / 100
    print(f"| {options.documents:,} | {step} | {peak():.0f} | {before:.0f} | {seconds / options.documents * 1e6:.0f} |")
    shutil.rmtree(work)


def peak() -> float:
    """MB this process had in memory at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _random_keys(first: int, count: int) -> pa.Table:
    """One document in ten repeats an address, as many the words, as many nearly another."""
    rng = np.random.default_rng(first)
    docs = np.arange(first, first + count)
    signatures = rng.integers(0, 1 << 32, (count, KNOBS.minhash_permutations), np.uint32)
    signatures[5::10] = signatures[::10]
    signatures[5::10, ::50] += 1
    digests = np.where(docs % 10 == 3, docs - 1, docs)
    columns = {
        "doc": docs,
        "url_key": docs - (docs % 10 == 8),
        "date": [f"{doc % 28:02d}" for doc in docs],
        "language": ["en"] * count,
        "characters": np.full(count, 3000),
        "digest": [digest.tobytes() for digest in digests],
        "signature": [signature.tobytes() for signature in signatures],
    }
    return pa.table(columns).cast(KEYS)


def _random_lines(first: int, count: int) -> pa.Table:
    """30 lines a document: most of them once, some again and again."""
    rng = np.random.default_rng(first)
    lines = rng.integers(0, 1 << 62, 30 * count, np.uint64)
    lines[::10] = rng.integers(0, 10_000, len(lines[::10]), np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values, counts = np.unique(lines, return_counts=True)
    same = pa.repeat("en", len(values)), pa.repeat(pa.scalar(0, pa.int32()), len(values))
    return pa.table([*same, values, counts], names=["language", "bucket", "line", "count"])


def parse(about: str, *parts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about)
    if parts:
        parser.add_argument("part", choices=parts)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="JSONL files; made-up text without")
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    functions = {"near": near_copies, "lines": line_speed, "memory": memory}
    functions |= {"memory-duplicates": memory_of_one, "memory-lines": memory_of_one}
    options = parse(__doc__ or "", *functions)
    functions[options.part](options)
