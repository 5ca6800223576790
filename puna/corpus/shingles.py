"""Words and their n-grams as 64-bit hashes: what both the repetition filter and MinHash count."""

import re

import numpy as np
import xxhash

WORD = re.compile(r"[\w\u0900-\u0963]+")  # \w leaves out the vowel signs of Devanagari
_ODD = np.uint64(0x9E3779B97F4A7C15)


def hash_words(text: str) -> np.ndarray:
    """[words] uint64: the words of a text without case, punctuation and spacing."""
    digest = xxhash.xxh3_64_intdigest
    found = WORD.findall(text.lower())
    cache: dict[str, int] = {word: digest(word.encode()) for word in set(found)}
    return np.fromiter((cache[word] for word in found), np.uint64, len(found))


def hash_ngrams(words: np.ndarray, n: int) -> np.ndarray:
    """[words - n + 1] uint64: every run of n words, a polynomial in an odd number modulo 2^64, mixed.

    A text of fewer than n words has one n-gram, of all it has.
    """
    if len(words) == 0:
        return words
    n = min(n, len(words))
    grams = np.zeros(len(words) - n + 1, np.uint64)
    for place in range(n):
        grams = grams * _ODD + words[place : place + len(grams)]
    grams ^= grams >> np.uint64(32)
    grams *= _ODD
    return grams ^ (grams >> np.uint64(29))
