"""MinHash (Broder 1997): the similarity of two sets of shingles, estimated from short signatures.

The chance that two sets have the same minimum under a random order is their Jaccard similarity, so the share of equal
places in two signatures estimates it, with a standard error of at most 0.5 / sqrt(permutations). Locality-sensitive
hashing (Indyk and Motwani 1998) finds likely pairs: a signature is cut into bands, and two texts that agree in a whole
band become candidates.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import xxhash

from puna.corpus.shingles import ODD, hash_ngrams, hash_ngrams_of, hash_words, hash_words_of
from puna.recipe import Corpus

BLOCK = 1 << 14
"""Shingles permuted at once: 64 KB, so that three passes over them stay in the cache of a core."""


class Keys(NamedTuple):
    """What the global steps need of texts. `digests`: 16 bytes each, equal for equal words.
    `signatures`: [texts, permutations] uint32."""

    digests: list[bytes]
    signatures: np.ndarray


def text_keys(texts: Sequence[str], knobs: Corpus) -> Keys:
    """Keys of many texts at once, which is several times faster than one by one and gives the same."""
    words, counts = hash_words_of(texts)
    ends = np.cumsum(counts).tolist()
    digests = [xxhash.xxh3_128_digest(words[end - count : end].data) for end, count in zip(ends, counts.tolist())]
    grams, gram_counts = hash_ngrams_of(words, counts, knobs.minhash_ngram)
    return Keys(digests, signatures_of(grams, gram_counts, knobs.minhash_permutations))


def shingle_sets(texts: Sequence[str], n: int) -> list[np.ndarray]:
    """The set of each text's word n-grams: sorted distinct uint64 hashes."""
    return [np.unique(hash_ngrams(hash_words(text), n)) for text in texts]


def signatures_of(shingles: np.ndarray, counts: np.ndarray, permutations: int) -> np.ndarray:
    """[texts, permutations] uint32: the minimum of each text's shingles under each hash function.

    shingles is [of all texts] uint64, counts [texts]; repeated shingles change nothing. A text without any has the
    largest value everywhere.
    """
    factors, summands = _hash_functions(permutations)
    found = np.full((permutations, len(counts)), np.iinfo(np.uint32).max, np.uint32)
    some = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[some]
    upper = (shingles >> np.uint64(32)).astype(np.uint32)
    hashed = np.empty(0, np.uint32)
    for first, last in _spans(starts, len(upper)):
        block = upper[starts[first] : starts[last] if last < len(starts) else len(upper)]
        hashed = np.empty_like(block) if len(hashed) < len(block) else hashed
        offsets = starts[first:last] - starts[first]
        minima = np.empty((permutations, last - first), np.uint32)
        for number in range(permutations):
            # an odd factor and a summand permute the numbers modulo 2^32 (Dietzfelbinger et al. 1997)
            values = np.multiply(block, factors[number], out=hashed[: len(block)])
            values += summands[number]
            np.minimum.reduceat(values, offsets, out=minima[number])
        found[:, some[first:last]] = minima
    return np.ascontiguousarray(found.T)


def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """[texts, bands] uint64: equal where two signatures agree in a whole band."""
    rows = signatures.shape[1] // bands
    cut = signatures[:, : rows * bands].reshape(len(signatures), bands, rows)
    keys = np.zeros(cut.shape[:2], np.uint64)
    for row in range(rows):
        keys ^= cut[:, :, row]
        keys *= np.uint64(ODD)
        keys ^= keys >> np.uint64(29)
    return keys


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two sets of shingles."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _spans(starts: np.ndarray, end: int) -> list[tuple[int, int]]:
    """Texts [first, last) of about BLOCK shingles together, one at least."""
    spans, first = [], 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK)))
        spans.append((first, last))
        first = last
    return spans


@cache
def _hash_functions(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """[permutations] uint32 odd factors, and summands. Part of the method, so no seed of the recipe."""
    drawn = np.random.default_rng(permutations).integers(0, 1 << 32, (2, permutations), np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]
