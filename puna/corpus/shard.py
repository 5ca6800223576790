"""The shards stage: documents to token files, which training maps into memory.

    PART.bin            token ids, little-endian, uint16 where the vocabulary fits: BOS, a document, EOS, BOS, ...
    PART.idx.npy        [documents + 1] int64: where each document starts, and where the last one ends
    held_out.bin, .idx  the same of the documents that are not trained on, in the order of held_out.parquet
    held_out.bytes.npy  [documents] int64: their length in UTF-8 bytes, for bits per byte
    shards.json         counts, the type of the ids, and characters per token in each language

The documents of a part are shuffled, since neighbours come from the same site.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puna.corpus.read import PARTS
from puna.log import Log
from puna.recipe import Recipe
from puna.run import figure
from puna.text.tokenizer import Tokenizer
from puna.train.batches import rng

BATCH = 256  # documents encoded at once


@dataclass
class Written:
    """What went into one token file."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0
    offsets: list[int] = field(default_factory=lambda: [0])
    document_bytes: list[int] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("documents", "tokens", "characters", "bytes")}


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Tokenize the corpus artifact with the tokenizer artifact."""
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    tables = {part: pq.read_table(inputs["corpus"] / "documents" / f"{part}.parquet") for part in PARTS}
    held_out = pq.read_table(inputs["corpus"] / "held_out.parquet")
    sizes: defaultdict[str, Counter[str]] = defaultdict(Counter)  # of each language
    written = {}
    total = sum(table.num_rows for table in tables.values()) + held_out.num_rows
    with log.progress("tokenizing", total) as bar:
        for part, table in tables.items():
            order = rng(recipe.seed, "shards", part).permutation(table.num_rows)
            written[part] = _write(table.take(pa.array(order)), tokenizer, dtype, out / part, sizes, bar)
        written["held_out"] = _write(held_out, tokenizer, dtype, out / "held_out", sizes, bar)
    np.save(out / "held_out.bytes.npy", np.array(written["held_out"].document_bytes, np.int64))
    summary = {
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        "parts": {part: written[part].counts for part in PARTS},
        "held_out": written["held_out"].counts,
        "characters_per_token": {
            language: round(size["characters"] / max(1, size["tokens"]), 4) for language, size in sorted(sizes.items())
        },
    }
    (out / "shards.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return _metrics(summary)


def _write(
    table: pa.Table,
    tokenizer: Tokenizer,
    dtype: np.dtype,
    stem: Path,
    sizes: defaultdict[str, Counter[str]],
    bar: Any,
) -> Written:
    """Write STEM.bin and STEM.idx.npy in the order of the table; counts each language into `sizes`."""
    written = Written()
    with stem.with_name(f"{stem.name}.bin").open("wb") as handle:
        for batch in table.select(["text", "language"]).to_batches(BATCH):
            texts, languages = batch["text"].to_pylist(), batch["language"].to_pylist()
            for text, language, ids in zip(texts, languages, tokenizer.encode_batch(texts)):
                np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype).tofile(handle)
                length = len(text.encode("utf-8"))
                written.documents += 1
                written.tokens += len(ids) + 2
                written.characters += len(text)
                written.bytes += length
                written.offsets.append(written.tokens)
                written.document_bytes.append(length)
                sizes[language].update(characters=len(text), tokens=len(ids))
            bar.advance(len(texts))
    np.save(stem.with_name(f"{stem.name}.idx.npy"), np.array(written.offsets, np.int64))
    return written


def _metrics(summary: dict[str, Any]) -> dict[str, Any]:
    named = summary["parts"] | {"held_out": summary["held_out"]}
    metrics = {f"shards.tokens.{name}": figure(counts["tokens"], "tokens") for name, counts in named.items()}
    for language, ratio in summary["characters_per_token"].items():
        metrics[f"shards.characters_per_token.{language}"] = figure(ratio, "characters per token")
    return metrics
