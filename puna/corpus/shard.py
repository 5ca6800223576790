"""The shards stage: documents to token files, which training maps into memory.

    PART.bin            token ids, little-endian, uint16 where the vocabulary fits: BOS, a document, EOS, BOS, ...
    PART.idx.npy        [documents + 1] int64: where each document starts, and where the last one ends
    held_out.bin, .idx  the same of the documents that are not trained on, in the order of held_out.parquet
    held_out.bytes.npy  [documents] int64: their length in UTF-8 bytes, for bits per byte
    shards.json         counts, the type of the ids, characters per token in each language, and the groups of each part

Documents of a group (the same language, topic and source) lie together, so that `pretrain.weights` can weigh them. In
a group they are shuffled, since neighbours come from the same site: by the hash of the seed and their id, over the
whole corpus. They are sorted by it as a file too large for memory is: first spread over buckets by the hash's upper
bits, then bucket by bucket. The size of a bucket bounds the memory and does not change the order.
"""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from puna.corpus.mix import GROUP
from puna.corpus.read import PARTS
from puna.log import Log
from puna.recipe import Recipe
from puna.run import figure, work_folder
from puna.text.tokenizer import Tokenizer

BATCH = 256  # documents encoded at once
BUCKET = 200_000_000  # characters in a bucket
BUFFER = 16_000_000  # tokens that wait to be spread
ENTRY = np.dtype([("key", np.uint64), ("row", np.int64), ("tokens", np.int64)])

Group = tuple[str, ...]


class TokenFile(AbstractContextManager["TokenFile"]):
    """STEM.bin and STEM.idx.npy in the making; how many documents there will be is known before."""

    def __init__(self, stem: Path, documents: int) -> None:
        self.documents = self.tokens = 0
        self.binary = stem.with_name(f"{stem.name}.bin").open("wb")
        index = stem.with_name(f"{stem.name}.idx.npy")
        self.offsets = np.lib.format.open_memmap(index, "w+", np.dtype("<i8"), (documents + 1,))
        self.offsets[0] = 0

    def add(self, lengths: np.ndarray, tokens: np.ndarray) -> None:
        """Documents of these lengths, their tokens one after another."""
        ends = self.tokens + np.cumsum(lengths)
        self.offsets[self.documents + 1 : self.documents + 1 + len(lengths)] = ends
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())
        tokens.tofile(self.binary)

    def __exit__(self, *exception: object) -> None:
        self.binary.close()
        self.offsets.flush()


@dataclass
class Encoded:
    """Some documents of a table, in its order."""

    rows: np.ndarray
    """[documents] int64: their places in the table."""
    ids: list[str]
    groups: list[Group]
    tokens: list[np.ndarray]
    characters: list[int]
    bytes: list[int]


@dataclass
class Sizes:
    """What went into the token files."""

    of: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Of each file."""
    languages: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, name: str, batch: Encoded) -> None:
        lengths = [len(tokens) for tokens in batch.tokens]
        self.of[name].update(documents=len(lengths), tokens=sum(lengths))
        self.of[name].update(characters=sum(batch.characters), bytes=sum(batch.bytes))
        for group, characters, length in zip(batch.groups, batch.characters, lengths):
            self.languages[group[0]].update(characters=characters, tokens=length - 2)

    def counts(self, name: str) -> dict[str, int]:
        return {key: self.of[name][key] for key in ("documents", "tokens", "characters", "bytes")}


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Tokenize the corpus artifact with the tokenizer artifact."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    tables = {part: inputs["corpus"] / "documents" / f"{part}.parquet" for part in PARTS}
    held_out = inputs["corpus"] / "held_out.parquet"
    sizes, groups = Sizes(), {}
    with log.progress("tokenizing", sum(map(_rows_in, (*tables.values(), held_out)))) as bar:
        for part, table in tables.items():
            spread = Spread(work_folder(out) / part, dtype, _buckets(table))
            for batch in _encode(table, tokenizer, dtype, bar):
                keys = [xxhash.xxh3_64_intdigest(f"{recipe.seed} {part} {name}".encode()) for name in batch.ids]
                spread.add(batch, np.array(keys, np.uint64))
                sizes.add(part, batch)
            with TokenFile(out / part, _rows_in(table)) as file:
                groups[part] = spread.gather(file)
        with TokenFile(out / "held_out", _rows_in(held_out)) as file:
            document_bytes: list[int] = []
            for batch in _encode(held_out, tokenizer, dtype, bar):
                file.add(np.array([len(tokens) for tokens in batch.tokens]), np.concatenate(batch.tokens))
                document_bytes += batch.bytes
                sizes.add("held_out", batch)
    np.save(out / "held_out.bytes.npy", np.array(document_bytes, np.int64))
    summary = {
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "parts": {part: sizes.counts(part) for part in PARTS},
        "held_out": sizes.counts("held_out"),
        "characters_per_token": {
            language: round(size["characters"] / max(1, size["tokens"]), 4)
            for language, size in sorted(sizes.languages.items())
        },
        "groups": groups,
    }
    (out / "shards.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return _metrics(summary)


def _rows_in(table: Path) -> int:
    return pq.read_metadata(table).num_rows


def _encode(table: Path, tokenizer: Tokenizer, dtype: np.dtype, bar: Any) -> Iterator[Encoded]:
    row = 0
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(BATCH, columns=["id", "text", *GROUP]):
            texts = batch["text"].to_pylist()
            encoded = [
                np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype) for ids in tokenizer.encode_batch(texts)
            ]
            groups = list(zip(*(batch[name].to_pylist() for name in GROUP)))
            lengths = [len(text) for text in texts], [len(text.encode("utf-8")) for text in texts]
            yield Encoded(np.arange(row, row + len(texts)), batch["id"].to_pylist(), groups, encoded, *lengths)
            row += len(texts)
            bar.advance(len(texts))


# -- the shuffle -------------------------------------------------------------------------------------------------------


def _buckets(table: Path) -> dict[Group, int]:
    """How many buckets each group takes, in the order of the groups."""
    sizes: Counter[Group] = Counter()
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(BATCH * 64, columns=["characters", *GROUP]):
            for *group, characters in zip(*(batch[name].to_pylist() for name in (*GROUP, "characters"))):
                sizes[tuple(group)] += characters
    return {group: -(-size // BUCKET) or 1 for group, size in sorted(sizes.items())}


class Spread:
    """Documents on their way into buckets: files of tokens and of entries, in `folder`."""

    def __init__(self, folder: Path, dtype: np.dtype, buckets: dict[Group, int]) -> None:
        self.folder, self.dtype, self.buckets = folder, dtype, buckets
        self.numbers = {group: number for number, group in enumerate(buckets)}
        self.waiting: defaultdict[tuple[int, int], list[tuple[np.ndarray, int, int]]] = defaultdict(list)
        self.held = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, batch: Encoded, keys: np.ndarray) -> None:
        for row, group, tokens, key in zip(batch.rows.tolist(), batch.groups, batch.tokens, keys.tolist()):
            bucket = key * self.buckets[group] >> 64
            self.waiting[self.numbers[group], bucket].append((tokens, key, row))
            self.held += len(tokens)
        if self.held > BUFFER:
            self._flush()

    def gather(self, file: TokenFile) -> list[dict[str, Any]]:
        """Write the documents in order, and tell where each group is."""
        self._flush()
        ranges = []
        for group, buckets in self.buckets.items():
            start = file.tokens
            for bucket in range(buckets):
                self._write(self.numbers[group], bucket, file)
            ranges.append(dict(zip(GROUP, group)) | {"start": start, "tokens": file.tokens - start})
        shutil.rmtree(self.folder)
        return ranges

    def _flush(self) -> None:
        for (number, bucket), documents in self.waiting.items():
            with self._path(number, bucket, "bin").open("ab") as handle:
                np.concatenate([tokens for tokens, _, _ in documents]).tofile(handle)
            with self._path(number, bucket, "entries").open("ab") as handle:
                np.array([(key, row, len(tokens)) for tokens, key, row in documents], ENTRY).tofile(handle)
        self.waiting.clear()
        self.held = 0

    def _write(self, number: int, bucket: int, file: TokenFile) -> None:
        path = self._path(number, bucket, "bin")
        if not path.exists():  # a bucket that no key fell into
            return
        tokens = np.fromfile(path, self.dtype)
        entries = np.fromfile(self._path(number, bucket, "entries"), ENTRY)
        ends = np.cumsum(entries["tokens"])
        order = np.lexsort((entries["row"], entries["key"]))
        pieces = [tokens[ends[place] - entries["tokens"][place] : ends[place]] for place in order.tolist()]
        file.add(entries["tokens"][order], np.concatenate(pieces))

    def _path(self, number: int, bucket: int, suffix: str) -> Path:
        return self.folder / f"{number:05d}-{bucket:06d}.{suffix}"


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    named = summary["parts"] | {"held_out": summary["held_out"]}
    metrics = {f"shards.tokens.{name}": figure(counts["tokens"], "tokens") for name, counts in named.items()}
    for language, ratio in summary["characters_per_token"].items():
        metrics[f"shards.characters_per_token.{language}"] = figure(ratio, "characters per token")
    return metrics
