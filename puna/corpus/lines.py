"""Lines that recur all over the web: menus, cookie notices, calls to share (section 3.1.1, line-level de-duplication).

A line seen more than `line_repeats` times in a bucket of `line_bucket` documents of one language is dropped there
wherever it stands. Lines count without the spaces around them, and by a 64-bit hash: of a billion different lines,
two share one by a chance of 3%.

    line_keys                   shard by shard: the hashes of every text's lines, made once and kept
    count_lines                 shard by shard: (language, bucket, line, count)
    frequent_lines              over all shards, in DuckDB: the lines to drop
    FrequentLines(...).drop     shard by shard
"""

from collections.abc import Iterator, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from puna.corpus.shingles import blocks_of
from puna.corpus.tables import BATCH, connect, scan, write
from puna.recipe import Corpus

COUNTS = pa.schema({"language": pa.string(), "bucket": pa.int32(), "line": pa.uint64(), "count": pa.int64()})
FREQUENT = pa.schema({"language": pa.string(), "bucket": pa.int32(), "line": pa.uint64()})
HASHES: dict[str, Any] = {"use_dictionary": ["language"], "compression": "none"}
"""Options to write them with: nothing about a hash repeats."""
BLANK = np.uint64(xxhash.xxh3_64_intdigest(b""))
BLOCK = 1 << 16  # characters of the texts whose lines are hashed at once


def line_keys(texts: Sequence[str]) -> pa.ListArray:
    """[texts] lists of uint64, one for each line: BLANK for those of spaces only."""
    keys, counts = [np.zeros(0, np.uint64)], [np.zeros(1, np.int32)]
    for block in blocks_of(texts, BLOCK):
        lines = [text.encode("utf-8", "surrogatepass").split(b"\n") for text in block]
        counts.append(np.array([len(of_text) for of_text in lines], np.int32))
        hashes = map(xxhash.xxh3_64_intdigest, map(bytes.strip, chain.from_iterable(lines)))
        keys.append(np.fromiter(hashes, np.uint64, int(counts[-1].sum())))
    return pa.ListArray.from_arrays(np.cumsum(np.concatenate(counts), dtype=np.int32), np.concatenate(keys))


def _flat(lines: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """[lines of all texts] uint64 and [texts] how many each has."""
    return lines.flatten().to_numpy(), lines.value_lengths().to_numpy()


def buckets(languages: Sequence[str], before: dict[str, int], knobs: Corpus) -> np.ndarray:
    """[documents] int32: the bucket of each document of a shard, by its number within its language.

    before: how many documents of a language the earlier shards have.
    """
    numbers = dict(before)
    found = np.zeros(len(languages), np.int32)
    for place, language in enumerate(languages):
        number = numbers.get(language, 0)
        found[place] = number // knobs.line_bucket
        numbers[language] = number + 1
    return found


def count_lines(lines: pa.ListArray, languages: Sequence[str], buckets: np.ndarray) -> pa.Table:
    """How often each line stands in a shard, of the `line_keys` of its texts: the columns of COUNTS, sorted."""
    keys, counts = _flat(lines)
    tables = [COUNTS.empty_table()]
    for (language, bucket), here in _groups(languages, buckets):
        found, times = np.unique(keys[np.repeat(here, counts)], return_counts=True)
        found, times = found[found != BLANK], times[found != BLANK]
        same = pa.repeat(language, len(found)), pa.repeat(pa.scalar(bucket, pa.int32()), len(found))
        tables.append(pa.table([*same, found, times], schema=COUNTS))
    return pa.concat_tables(tables)


def frequent_lines(counts: Sequence[Path], knobs: Corpus, work: Path) -> Path:
    """The lines to drop, of the tables that `count_lines` made: a Parquet file of FREQUENT, sorted."""
    if not counts or not knobs.line_repeats:
        return write(work / "frequent_lines.parquet", FREQUENT, [])
    with connect(knobs, work) as db:
        found = db.sql(
            f"SELECT language, bucket, line FROM {scan(counts)} GROUP BY ALL "
            f"HAVING sum(count) > {knobs.line_repeats} ORDER BY ALL"
        )
        return write(work / "frequent_lines.parquet", FREQUENT, found.to_arrow_reader(BATCH))


class FrequentLines:
    """The lines to drop, those of a language and bucket loaded when a text needs them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded: dict[tuple[str, int], _Set] = {}

    def drop(
        self, texts: Sequence[str], lines: pa.ListArray, languages: Sequence[str], buckets: np.ndarray
    ) -> list[str]:
        """The texts, whose `line_keys` are given, without their frequent lines; one without any is returned as it is.

        Where a line goes, the blank line after it goes too if another blank line, or nothing, stands before it.
        """
        keys, counts = _flat(lines)
        dropped = np.zeros(len(keys), bool)
        for group, here in _groups(languages, buckets):
            frequent, places = self._lines(group), np.flatnonzero(np.repeat(here, counts))
            dropped[places] = frequent.contains(keys[places])
        ends = np.cumsum(counts)
        stays = ~dropped & ~_blank_after(dropped, keys == BLANK, ends - counts)
        kept = list(texts)
        for number in map(int, np.unique(np.searchsorted(ends, np.flatnonzero(dropped), side="right"))):
            first, last = ends[number] - counts[number], ends[number]
            left = "\n".join(compress(texts[number].split("\n"), stays[first:last].tolist()))
            kept[number] = left.rstrip("\n") if dropped[last - 1] else left
        return kept

    def _lines(self, group: tuple[str, int]) -> "_Set":
        if group not in self.loaded:
            chosen = [("language", "=", group[0]), ("bucket", "=", group[1])]
            self.loaded[group] = _Set(pq.read_table(self.path, columns=["line"], filters=chosen)["line"].to_numpy())
        return self.loaded[group]


class _Set:
    """Sorted numbers, behind a table of their lower bits that tells most others at once."""

    def __init__(self, members: np.ndarray) -> None:
        self.members = members
        size = 1 << min(24, (64 * len(members)).bit_length())
        self.mask = np.uint64(size - 1)
        self.likely = np.zeros(size, bool)
        self.likely[members & self.mask] = True

    def contains(self, keys: np.ndarray) -> np.ndarray:
        """[keys] bool"""
        found = self.likely[keys & self.mask]
        likely = np.flatnonzero(found)
        if len(likely):
            places = np.searchsorted(self.members, keys[likely])
            found[likely] = self.members.take(places, mode="clip") == keys[likely]
        return found


def _blank_after(dropped: np.ndarray, blank: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[lines] bool: blank lines right after dropped ones before which there is a blank line or the text starts.

    starts: [texts] number of each text's first line.
    """
    after = np.zeros(len(dropped), bool)
    after[1:] = dropped[:-1]
    after[starts] = False
    places = np.flatnonzero(after & blank)
    before = np.maximum.accumulate(np.where(dropped, -1, np.arange(len(dropped))))[places - 1]  # the last that stays
    first = starts[np.searchsorted(starts, places, side="right") - 1]
    gone = np.zeros(len(dropped), bool)
    gone[places[(before < first) | blank[before]]] = True
    return gone


def _groups(languages: Sequence[str], buckets: np.ndarray) -> Iterator[tuple[tuple[str, int], np.ndarray]]:
    """Each language and bucket with [documents] bool, those of it; sorted."""
    of_language = np.array(languages, object)
    of_bucket = np.asarray(buckets)
    for language, bucket in sorted(set(zip(languages, of_bucket.tolist()))):
        yield (language, bucket), (of_language == language) & (of_bucket == bucket)
