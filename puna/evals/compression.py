"""Bits per byte of held-out text: the model beside `xz -9` and a token bigram model, on the same bytes."""

import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puna.infer.engine import Engine


def model_bits(engine: Engine, documents: Sequence[list[int]], window: int) -> np.ndarray:
    """Bits of each document (ids that begin with begin_of_text) under the model, [documents].

    Long documents are read in windows that overlap by half, so that every token but the first few of a document is
    predicted from at least half a window.
    """
    step = window // 2
    overlap = window - step
    pieces, owners, skips = [], [], []
    for number, ids in enumerate(documents):
        for start in range(0, max(1, len(ids) - overlap), step):
            pieces.append(ids[start : start + window])
            owners.append(number)
            skips.append(overlap - 1 if start else 0)
    bits = np.zeros(len(documents))
    for owner, skip, row in zip(owners, skips, engine.log_probs(pieces, batch=16)):
        bits[owner] -= row[skip:].double().sum().item() / np.log(2)
    return bits


class Bigram:
    """Token bigram counts smoothed towards the unigram: p(b|a) = (n(a,b) + k p(b)) / (n(a) + k)."""

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.unigram = np.bincount(tokens, minlength=vocab_size) + 1.0
        self.first = np.bincount(tokens[:-1], minlength=vocab_size)
        self.unigram /= self.unigram.sum()
        keys = tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
        self.keys, self.counts = np.unique(keys, return_counts=True)

    def bits(self, ids: Sequence[int], k: float) -> float:
        """Bits of ids[1:] given the token before each."""
        a, b = np.asarray(ids[:-1]), np.asarray(ids[1:])
        key = a.astype(np.int64) * self.vocab_size + b
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        count = np.where(self.keys[place] == key, self.counts[place], 0)
        return float(-np.log2((count + k * self.unigram[b]) / (self.first[a] + k)).sum())

    def best_bits(self, documents: Sequence[list[int]]) -> np.ndarray:
        """Bits of each document with the smoothing that suits the held-out text itself best: in its favour."""
        tried = [np.array([self.bits(ids, k) for ids in documents]) for k in (10, 30, 100, 300, 1000, 3000)]
        return min(tried, key=lambda bits: float(bits.sum()))


def training_tokens(shards: Path, parts: Sequence[str], dtype: str) -> np.ndarray:
    """All training tokens: the bigram model may read everything that the Llama could."""
    return np.concatenate([np.fromfile(shards / f"{part}.bin", dtype) for part in parts])


def xz_bits(texts: Sequence[bytes]) -> float:
    """Bits of all texts together under `xz -9`, container included."""
    return len(lzma.compress(b"\n".join(texts), preset=9)) * 8.0
