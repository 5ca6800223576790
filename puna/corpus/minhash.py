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

from puna.corpus.shingles import ODD, blocks_of, hash_ngrams, hash_ngrams_of, hash_words, hash_words_of
from puna.recipe import Corpus

BLOCK = 1 << 18
"""Characters of the texts done at once, so that their shingles fit the cache of a core."""


class Keys(NamedTuple):
    """What the global steps need of texts. `digests`: 16 bytes each, equal for equal words.
    `signatures`: [texts, permutations] uint32."""

    digests: list[bytes]
    signatures: np.ndarray


def text_keys(texts: Sequence[str], knobs: Corpus) -> Keys:
    """Keys of many texts at once, which is several times faster than one by one and gives the same."""
    digests: list[bytes] = []
    signatures = [np.zeros((0, knobs.minhash_permutations), np.uint32)]
    for block in blocks_of(texts, BLOCK):
        words, counts = hash_words_of(block)
        ends = np.cumsum(counts)
        digests += [xxhash.xxh3_128_digest(words[end - count : end].data) for end, count in zip(ends, counts)]
        signatures.append(
            signatures_of(*hash_ngrams_of(words, counts, knobs.minhash_ngram), knobs.minhash_permutations)
        )
    return Keys(digests, np.concatenate(signatures))


def shingle_sets(texts: Sequence[str], n: int) -> list[np.ndarray]:
    """The set of each text's word n-grams: sorted distinct uint64 hashes."""
    return [np.unique(hash_ngrams(hash_words(text), n)) for text in texts]


def signatures_of(shingles: np.ndarray, counts: np.ndarray, permutations: int) -> np.ndarray:
    """[texts, permutations] uint32: the minimum of each text's shingles under each hash function.

    shingles is [of all texts] uint64, counts [texts]; repeated shingles change nothing. A text without any has the
    largest value everywhere.
    """
    minima = np.full((permutations, len(counts)), np.iinfo(np.uint32).max, np.uint32)
    some = np.flatnonzero(counts)
    starts = (np.cumsum(counts) - counts)[some]
    upper = (shingles >> np.uint64(32)).astype(np.uint32)
    values = np.empty_like(upper)
    for number, factor in enumerate(_factors(permutations) if len(some) else ()):
        # An odd factor permutes the numbers modulo 2^32 (Dietzfelbinger et al. 1997). There is no summand, as shingles
        # are already spread evenly.
        np.multiply(upper, factor, out=values)
        minima[number, some] = np.minimum.reduceat(values, starts)
    return np.ascontiguousarray(minima.T)


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


@cache
def _factors(permutations: int) -> np.ndarray:
    """[permutations] uint32, odd. Part of the method, so no seed of the recipe."""
    return np.random.default_rng(permutations).integers(0, 1 << 32, permutations, np.uint32) | np.uint32(1)
