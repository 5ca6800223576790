"""Nearly the same text: MinHash candidates, each verified (section 3.1.1, document-level de-duplication).

Documents are ranked, the best first, and taken in that order: one is dropped when a document that was kept has a
Jaccard similarity with it, counted on their shingles, that reaches the threshold. So every dropped document is nearly
the same as the kept one it names; joining candidates into chains instead would drop templated pages that are only
alike in their frame.

    signatures -> band keys -> pairs in one bucket -> pairs whose estimate is near -> shingles of those -> verdicts

Each arrow goes through a file in `work`. What memory holds is a batch, DuckDB's share, and one byte for each document.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import xxhash

from puna.corpus.minhash import band_keys, jaccard, shingle_sets
from puna.corpus.tables import columns_of, scan, write
from puna.recipe import Corpus

Texts = Callable[[np.ndarray], list[str]]
"""[n] int64 ids of documents, ascending -> their texts."""

NEIGHBOURS = 32
"""In a bucket a document is compared with its best one and with so many others that rank just before it, hence are
nearest in length. It bounds the work where templated pages fill a bucket; pairs that it skips meet in other bands."""
DEVIATIONS = 4
"""A pair is verified unless its estimate lies so many standard deviations under the threshold."""
TEXT_BATCH = 1 << 24  # characters of the texts that are asked for at once
PAIR_BATCH = 1 << 13  # pairs whose signatures are compared at once
PAIRS = pa.schema({"worse": pa.int64(), "better": pa.int64()})
ALIKE = pa.schema({"worse": pa.int64(), "better": pa.int64(), "alike": pa.int32()})
PLACES = pa.schema({"rank": pa.int64(), "start": pa.int64(), "shingles": pa.int64()})
NEAR = pa.schema({"doc": pa.int64(), "other": pa.int64()})


def find_near_copies(
    db: duckdb.DuckDBPyConnection, ranked: Path, signatures: Path, texts: Texts, knobs: Corpus, work: Path
) -> Path:
    """A Parquet file of NEAR: dropped documents, and for each the kept one that it nearly repeats.

    ranked: a Parquet file with the documents best first, columns doc, row, language, characters, of which `row` is the
    document's place in `signatures`, a file of [rows, permutations] uint32.
    """
    by_rank = scan(ranked, ", file_row_number = true")
    bands = write(work / "bands.parquet", _band_schema(knobs), _bands(db, by_rank, signatures, knobs))
    pairs = [
        write(work / f"pairs-{band:03d}.parquet", PAIRS, _pairs(db, bands, band)) for band in range(knobs.minhash_bands)
    ]
    alike = write(work / "alike.parquet", ALIKE, _alike(db, by_rank, pairs, signatures, knobs))
    places = _write_shingles(db, by_rank, alike, texts, knobs, work)
    return write(work / "near.parquet", NEAR, _verdicts(db, by_rank, alike, places, knobs, work))


def _band_schema(knobs: Corpus) -> pa.Schema:
    return pa.schema([("rank", pa.int64()), *((f"band{band}", pa.uint64()) for band in range(knobs.minhash_bands))])


def _bands(db: duckdb.DuckDBPyConnection, by_rank: str, signatures: Path, knobs: Corpus) -> Iterator[dict]:
    """Band keys, which differ between languages."""
    query = f"SELECT file_row_number, row, language FROM {by_rank} ORDER BY row"
    for ranks, rows, languages in columns_of(db, query):
        keys = band_keys(_rows(signatures, rows, knobs), knobs.minhash_bands)
        names, number = np.unique(languages.astype(str), return_inverse=True)
        of_name = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names.tolist()], np.uint64)
        keys ^= of_name[number][:, None]
        yield {"rank": ranks} | {f"band{band}": keys[:, band] for band in range(knobs.minhash_bands)}


def _pairs(db: duckdb.DuckDBPyConnection, bands: Path, band: int) -> Iterator[dict]:
    """The pairs of a band: documents sorted by key, each compared with those before it as long as the key is equal."""
    column, table = f"band{band}", scan(bands)
    query = (
        f"SELECT {column}, rank FROM {table} WHERE {column} IN "
        f"(SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) > 1) ORDER BY {column}, rank"
    )
    keys, ranks, leaders = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for new_keys, new_ranks in columns_of(db, query):
        seen = len(keys)
        keys, ranks = np.concatenate([keys, new_keys]), np.concatenate([ranks, new_ranks])
        first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))  # where a bucket starts
        new_leaders = np.repeat(ranks[first], np.diff(first, append=len(keys)))
        if seen:  # a bucket that goes on keeps its leader
            new_leaders[: first[1] if len(first) > 1 else None] = leaders[0]
        leaders = np.concatenate([leaders, new_leaders[seen:]])
        for back in range(1, NEIGHBOURS + 1):
            here = np.arange(max(seen, back), len(keys))
            here = here[keys[here] == keys[here - back]]
            if not len(here):
                break
            yield {"worse": ranks[here], "better": ranks[here - back]}
        far = np.arange(seen, len(keys))
        far = far[leaders[far] != ranks[far]]
        yield {"worse": ranks[far], "better": leaders[far]}
        keys, ranks, leaders = keys[-NEIGHBOURS:], ranks[-NEIGHBOURS:], leaders[-NEIGHBOURS:]


def _alike(
    db: duckdb.DuckDBPyConnection, by_rank: str, pairs: list[Path], signatures: Path, knobs: Corpus
) -> Iterator[dict]:
    """The pairs whose signatures agree in enough places, and in how many."""
    threshold, permutations = knobs.minhash_threshold, knobs.minhash_permutations
    floor = threshold - DEVIATIONS * (threshold * (1 - threshold) / permutations) ** 0.5
    query = (
        f"SELECT worse, better, w.row, b.row FROM (SELECT DISTINCT worse, better FROM {scan(pairs)}) "
        f"JOIN {by_rank} w ON worse = w.file_row_number JOIN {by_rank} b ON better = b.file_row_number"
    )
    for columns in columns_of(db, query):
        for start in range(0, len(columns[0]), PAIR_BATCH):
            worse, better, worse_rows, better_rows = (column[start : start + PAIR_BATCH] for column in columns)
            equal = _rows(signatures, worse_rows, knobs) == _rows(signatures, better_rows, knobs)
            agree = equal.sum(axis=1, dtype=np.int32)
            near = agree >= floor * permutations
            yield {"worse": worse[near], "better": better[near], "alike": agree[near]}


def _write_shingles(
    db: duckdb.DuckDBPyConnection, by_rank: str, alike: Path, texts: Texts, knobs: Corpus, work: Path
) -> Path:
    """The shingle sets of all candidates to one file, `shingles.bin`, and where in it each is to PLACES."""
    query = (
        f"SELECT doc, file_row_number, characters FROM {by_rank} WHERE file_row_number IN "
        f"(SELECT worse FROM {scan(alike)} UNION SELECT better FROM {scan(alike)}) ORDER BY doc"
    )

    def places() -> Iterator[dict]:
        end = 0
        with open(work / "shingles.bin", "wb") as file:
            for docs, ranks, characters in columns_of(db, query):
                cuts = np.flatnonzero(np.diff(np.cumsum(characters) // TEXT_BATCH)) + 1
                for here in np.split(np.arange(len(docs)), cuts):
                    sets = shingle_sets(texts(docs[here]), knobs.minhash_ngram)
                    sizes = np.array([len(one) for one in sets], np.int64)
                    np.concatenate(sets).tofile(file)
                    yield {"rank": ranks[here], "start": end + np.cumsum(sizes) - sizes, "shingles": sizes}
                    end += int(sizes.sum())

    return write(work / "places.parquet", PLACES, places())


def _verdicts(
    db: duckdb.DuckDBPyConnection, by_rank: str, alike: Path, places: Path, knobs: Corpus, work: Path
) -> Iterator[dict]:
    """Take the pairs by the rank of their worse document, so that all verdicts on the better one are known."""
    documents = next(columns_of(db, f"SELECT count(*) FROM {by_rank}"))[0][0]
    dropped = np.zeros(documents, bool)
    query = (
        "SELECT worse, better, w.doc, b.doc, p.start, p.shingles, q.start, q.shingles "
        f"FROM {scan(alike)} JOIN {scan(places)} p ON worse = p.rank JOIN {scan(places)} q ON better = q.rank "
        f"JOIN {by_rank} w ON worse = w.file_row_number JOIN {by_rank} b ON better = b.file_row_number "
        "ORDER BY worse, alike DESC, better"
    )
    with open(work / "shingles.bin", "rb") as file:

        def shingles(start: int, count: int) -> np.ndarray:
            return np.frombuffer(os.pread(file.fileno(), 8 * count, 8 * start), np.uint64)

        for columns in columns_of(db, query):
            docs, others = [], []
            for worse, better, doc, other, *places_of_two in zip(*(column.tolist() for column in columns)):
                if dropped[worse] or dropped[better]:
                    continue
                if jaccard(shingles(*places_of_two[:2]), shingles(*places_of_two[2:])) >= knobs.minhash_threshold:
                    dropped[worse] = True
                    docs.append(doc)
                    others.append(other)
            yield {"doc": np.array(docs, np.int64), "other": np.array(others, np.int64)}


def _rows(signatures: Path, rows: np.ndarray, knobs: Corpus) -> np.ndarray:
    """[rows, permutations] uint32, read and not mapped, so that only they take memory."""
    distinct, places = np.unique(rows, return_inverse=True)
    runs = np.split(distinct, np.flatnonzero(np.diff(distinct) != 1) + 1)
    size = 4 * knobs.minhash_permutations
    with open(signatures, "rb") as file:
        read = b"".join(os.pread(file.fileno(), size * len(run), size * int(run[0])) for run in runs if len(run))
    return np.frombuffer(read, np.uint32).reshape(-1, knobs.minhash_permutations)[places]
