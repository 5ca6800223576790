"""Chats that say the same: clusters of vectors, and in each the best that are not too much alike (section 4.2.3).

The vectors are hashed TF-IDF of words and of pairs of words. The paper takes RoBERTa's; a mean of the hidden states of
the model in the making would make the data depend on the model, and a small model's tell topics apart but not
statements. TF-IDF finds copies with changed words, and takes no paraphrase in other words for one.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xxhash
from scipy.sparse import csr_matrix

from puna.posttrain.data.sample import Dropped, Sample, plain

BUCKETS = 2**16
CLUSTER = 500
"""Chats in a cluster, about."""
BLOCK = 1000
"""Chats that are compared with the kept ones at once."""
_WORD = re.compile(r"\w+")


def embed(texts: Sequence[str]) -> csr_matrix:
    """Hashed TF-IDF vectors of length 1, [texts, BUCKETS] fp32: (1 + log tf) * log((1 + n) / (1 + df)) + 1."""
    counts = [_counts(text) for text in texts]
    starts = np.cumsum([0, *map(len, counts)])
    columns = np.array([bucket for each in counts for bucket in each], np.int64)
    values = 1 + np.log(np.array([count for each in counts for count in each.values()], np.float32))
    frequency = np.bincount(columns, minlength=BUCKETS)
    values *= (np.log((1 + len(texts)) / (1 + frequency)) + 1)[columns].astype(np.float32)
    rows = csr_matrix((values, columns, starts), shape=(len(texts), BUCKETS))
    lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(1)))[:, 0]
    rows.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(starts))
    return rows


def _counts(text: str) -> dict[int, int]:
    words = _WORD.findall(text.lower())
    counts: dict[int, int] = {}
    for term in [*words, *map(" ".join, pairwise(words))]:
        bucket = xxhash.xxh3_64_intdigest(term.encode()) % BUCKETS
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def cluster(rows: csr_matrix, generator: np.random.Generator, steps: int = 5) -> np.ndarray:
    """Spherical k-means: the cluster of every row, [rows] int64, CLUSTER rows in each on average."""
    count = len(rows.indptr) - 1
    clusters = max(1, count // CLUSTER)
    if clusters == 1:
        return np.zeros(count, np.int64)
    centres = rows[np.sort(generator.choice(count, clusters, replace=False))].toarray()
    nearest = np.zeros(count, np.int64)
    for step in range(steps):
        nearest = np.concatenate(
            [np.asarray(rows[at : at + BLOCK] @ centres.T).argmax(1) for at in range(0, count, BLOCK)]
        )
        if step + 1 < steps:
            members = csr_matrix((np.ones(count, np.float32), (nearest, np.arange(count))), shape=(clusters, count))
            sums = csr_matrix(members @ rows).toarray()
            centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return nearest


def greedy(rows: csr_matrix, order: Sequence[int], limit: float) -> dict[int, tuple[int, float]]:
    """Go through rows in an order and keep each whose cosine with every kept one is at most `limit`.

    Returns the others, each with the kept row that is most like it and the cosine. The paper compares with all that
    were seen; comparing with those that stay never loses all of a chain of chats.
    """
    kept: list[int] = []
    dropped: dict[int, tuple[int, float]] = {}
    for at in range(0, len(order), BLOCK):
        block = list(order[at : at + BLOCK])
        pool = [*kept, *block]
        cosines = (rows[block] @ rows[pool].T).toarray()
        alive = np.arange(len(pool)) < len(kept)
        for place, row in enumerate(block):
            seen = np.where(alive, cosines[place], -1.0)
            nearest = int(seen.argmax())
            if seen[nearest] > limit:
                dropped[row] = (pool[nearest], float(seen[nearest]))
            else:
                alive[len(kept) + place] = True
        kept = [row for row, stays in zip(pool, alive) if stays]
    return dropped


def drop_alike(
    samples: Sequence[Sample], limit: float, generator: np.random.Generator
) -> tuple[list[Sample], list[Dropped]]:
    """The best of the samples that are more alike than `limit`."""
    if limit >= 1 or not samples:
        return list(samples), []
    rows = embed([plain(sample.chat.messages) for sample in samples])
    nearest = cluster(rows, generator)
    gone: dict[int, tuple[int, float]] = {}
    for number in range(int(nearest.max()) + 1):
        members = np.flatnonzero(nearest == number).tolist()
        gone |= greedy(rows, sorted(members, key=lambda i: -samples[i].rank), limit)
    kept = [sample for i, sample in enumerate(samples) if i not in gone]
    dropped = [
        Dropped.of(samples[i], "alike", f"cosine {cosine:.3f} with {samples[other].name}")
        for i, (other, cosine) in sorted(gone.items())
    ]
    return kept, dropped
