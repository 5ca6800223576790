"""Words and their n-grams as 64-bit hashes: what the repetition filter and MinHash count.

Many texts are taken at once, as one array of characters, so that no Python runs for each word. A word's hash is a
polynomial over its characters, read off a running sum:

    sums[i] = value[c_0] r^0 + ... + value[c_i-1] r^(i-1)     modulo 2^64
    hash of the word [start, end) = (sums[end] - sums[start]) r^-start

which needs no division, as an odd r has an inverse modulo 2^64.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

BLOCK = 1 << 16
"""Characters hashed at once: the arrays of a block fit the second-level cache of a core."""
CODES = 0x20000
"""Characters with a value of their own; the rare ideographs and signs above share one."""
# Ideographs, kana, and the scripts of Thai, Lao, Myanmar and Khmer: written without spaces, so a word is one character.
UNSPACED = ((0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
            (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (CODES - 1, CODES - 1))  # fmt: skip
ODD = 0x9E3779B97F4A7C15


def hash_words(text: str) -> np.ndarray:
    """[words] uint64: the words of a text without case, punctuation and spacing."""
    return hash_words_of([text])[0]


def hash_words_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """[words of all texts] uint64, one text after the other, and [texts] int64 how many each has."""
    words, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for block in blocks_of(texts, BLOCK):
        hashes, starts = _hash_block("\n".join(block))
        ends = np.cumsum([len(text) + 1 for text in block])
        words.append(hashes)
        counts.append(np.diff(np.searchsorted(starts, ends), prepend=0))
    return np.concatenate(words), np.concatenate(counts)


def hash_ngrams(words: np.ndarray, n: int) -> np.ndarray:
    """[words - n + 1] uint64: every run of n words, a polynomial modulo 2^64, mixed.

    A text of fewer than n words has one n-gram, of all it has.
    """
    if len(words) == 0:
        return words
    n = min(n, len(words))
    grams = words[: len(words) - n + 1].copy()
    for place in range(1, n):
        grams *= np.uint64(ODD)
        grams += words[place : place + len(grams)]
    return _mix(grams)


def hash_ngrams_of(words: np.ndarray, counts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`hash_ngrams` of many texts given as by `hash_words_of`: [n-grams of all] uint64 and [texts] int64."""
    ends = np.cumsum(counts)
    grams = hash_ngrams(words, n)
    leaves = np.zeros(len(words), bool)  # does the run that starts here leave its text?
    for back in range(1, n):
        leaves[ends[counts >= back] - back] = True
    grams = grams[~leaves[: len(grams)]]
    whole = np.maximum(counts - n + 1, 0)
    short = np.flatnonzero((counts > 0) & (whole == 0))
    if len(short):
        extra = [hash_ngrams(words[ends[text] - counts[text] : ends[text]], n) for text in short]
        grams = np.insert(grams, np.cumsum(whole)[short], np.concatenate(extra))
        whole[short] = 1
    return grams, whole


def blocks_of(texts: Sequence[str], characters: int) -> Iterator[list[str]]:
    """Runs of texts of at most so many characters together; one that is longer goes alone."""
    block: list[str] = []
    size = 0
    for text in texts:
        if block and size + len(text) > characters:
            yield block
            block, size = [], 0
        block.append(text)
        size += len(text)
    if block:
        yield block


def _hash_block(text: str) -> tuple[np.ndarray, np.ndarray]:
    """[words] uint64 hashes and [words] int64 places where they start."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    terms = _alphabet().take(codes, mode="clip")
    inside = np.zeros(len(terms) + 2, bool)  # of a word, with an end put before and after
    np.not_equal(terms, 0, out=inside[1:-1])
    between = inside[1:] != inside[:-1]
    alone = terms & np.uint64(1) if not text.isascii() else terms[:0]
    if alone.any():
        between[1:] |= alone != 0
        between[:-1] |= alone != 0
        starts, ends = np.flatnonzero(between & inside[1:]), np.flatnonzero(between & inside[:-1])
    else:
        edges = np.flatnonzero(between)
        starts, ends = edges[::2], edges[1::2]
    size = 1 << len(terms).bit_length()
    terms *= _powers(ODD, size)[: len(terms)]
    sums = np.zeros(len(terms) + 1, np.uint64)
    np.cumsum(terms, out=sums[1:])
    hashes = sums[ends] - sums[starts]
    hashes *= _powers(pow(ODD, -1, 1 << 64), size)[starts]
    return hashes, starts


@cache
def _alphabet() -> np.ndarray:
    """[CODES] uint64: a value for each letter, mark, number and underscore, without case; 0 for all else. Odd are
    those of scripts without spaces."""
    characters = [chr(code) for code in range(CODES)]
    lower = (character.lower() for character in characters)
    codes = [ord(small) if len(small) == 1 else code for code, small in enumerate(lower)]
    word = [unicodedata.category(character)[0] in "LMN" or character == "_" for character in characters]
    word[-1] = True
    unspaced = np.zeros(CODES, np.uint64)
    for low, high in UNSPACED:
        unspaced[low : high + 1] = 1
    values = _mix(np.array(codes, np.uint64) + np.uint64(1)) & ~np.uint64(1) | unspaced
    return values * np.array(word)


@cache
def _powers(base: int, size: int) -> np.ndarray:
    """[size] uint64: 1, base, base^2 ... modulo 2^64."""
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread 64-bit values evenly, in place (the finalizer of splitmix64: Steele et al., OOPSLA 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values
