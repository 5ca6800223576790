"""Duplicates: the same address, the same text, nearly the same text (section 3.1.1).

Near-duplicates are found as in Broder's MinHash with locality-sensitive hashing. Documents are taken best first, and
one is dropped when a document that was kept has a Jaccard similarity with it, computed exactly, that reaches the
threshold. So every dropped document is nearly the same as the kept one it names; joining candidates into chains
instead would drop templated pages that are only alike in their frame.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from puna.corpus.shingles import hash_ngrams

CHUNK = 1024  # shingles permuted at once: fits the cache of a core
DEVIATIONS = 4
"""A candidate is compared exactly unless its estimate lies so many standard deviations under the threshold."""


def older_versions(addresses: Sequence[str], dates: Sequence[str]) -> dict[int, int]:
    """Item -> the newest one with the same address; of equal dates the first stays."""
    newest: dict[str, int] = {}
    for item in sorted(range(len(addresses)), key=lambda i: (dates[i], -i)):
        newest[addresses[item]] = item
    return {i: newest[a] for i, a in enumerate(addresses) if newest[a] != i}


def exact_copies(digests: Iterable[bytes], best_first: Iterable[int]) -> dict[int, int]:
    """Item -> the best item with the same digest."""
    digests = list(digests)
    first: dict[bytes, int] = {}
    for item in best_first:
        first.setdefault(digests[item], item)
    return {i: first[d] for i, d in enumerate(digests) if first.get(d, i) != i}


def shingles(words: np.ndarray, n: int) -> np.ndarray:
    """The set of a text's word n-grams: sorted distinct uint64 hashes, of `hash_words(text)`."""
    return np.unique(hash_ngrams(words, n))


def signature(shingle_set: np.ndarray, permutations: int) -> np.ndarray:
    """[permutations] uint32: for each of so many hash functions its minimum over the set."""
    a, b = _hash_functions(permutations)
    minima = np.full(permutations, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingle_set), CHUNK):
        chunk = shingle_set[start : start + CHUNK]
        # multiply-shift (Dietzfelbinger et al.): the upper bits of an odd multiple are spread evenly
        np.minimum(minima, (a[:, None] * chunk + b[:, None]).min(axis=1), out=minima)
    return (minima >> np.uint64(32)).astype(np.uint32)


@cache
def _hash_functions(permutations: int) -> np.ndarray:
    """[2, permutations] uint64: odd factors and summands. Part of the method, so no seed of the recipe."""
    return np.random.default_rng(permutations).integers(0, 1 << 63, (2, permutations), np.uint64) * 2 + 1


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two sets of shingles."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def near_copies(
    signatures: np.ndarray,
    shingles_of: Callable[[int], np.ndarray],
    best_first: Iterable[int],
    bands: int,
    threshold: float,
) -> dict[int, int]:
    """Item -> the kept item that it nearly repeats.

    signatures is [items, permutations] uint32; shingles_of(item) is asked only of candidates.
    """
    permutations = signatures.shape[1]
    rows = permutations // bands
    floor = threshold - DEVIATIONS * (threshold * (1 - threshold) / permutations) ** 0.5
    keys = np.ascontiguousarray(signatures[:, : rows * bands]).reshape(len(signatures), bands, rows)
    kept: list[defaultdict[bytes, list[int]]] = [defaultdict(list) for _ in range(bands)]
    duplicate_of: dict[int, int] = {}
    for item in best_first:
        buckets = [kept[band][keys[item, band].tobytes()] for band in range(bands)]
        candidates = np.array(sorted(set().union(*buckets)), np.int64)
        alike = (signatures[candidates] == signatures[item]).mean(axis=1)
        mine = shingles_of(item) if (alike >= floor).any() else None
        for candidate in candidates[np.argsort(-alike, kind="stable")][: int((alike >= floor).sum())]:
            if jaccard(mine, shingles_of(int(candidate))) >= threshold:  # type: ignore[arg-type]
                duplicate_of[item] = int(candidate)
                break
        else:
            for bucket in buckets:
                bucket.append(item)
    return duplicate_of
