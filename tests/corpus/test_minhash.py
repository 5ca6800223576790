"""Words, n-grams and signatures of many texts at once, against one by one in plain Python."""

import random
import unicodedata
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.minhash import band_keys, jaccard, shingle_sets, signatures_of, text_keys
from puna.corpus.shingles import BLOCK, CODES, UNSPACED, hash_ngrams, hash_ngrams_of, hash_words, hash_words_of
from puna.recipe import Corpus

from .conftest import prose

KNOBS = Corpus.model_validate({})
LARGEST = np.iinfo(np.uint32).max

# letters with and without case, marks, punctuation, scripts without spaces, lone surrogates, beyond the basic plane
ALPHABET = "aAbBéÉe\u0301ß_09²-.,“” \t\nक\u0941के日本ไทย😀𝐱𠀀\ud800"
TEXTS = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=20))


def split_words(text: str) -> list[str]:
    """By the definition: runs of letters, marks, numbers and underscores; ideographs alone."""
    words, open_word = [], False
    for character in text:
        inside = character == "_" or unicodedata.category(character)[0] in "LMN" or ord(character) >= CODES - 1
        code = min(ord(character), CODES - 1)
        alone = any(low <= code <= high for low, high in UNSPACED)
        lower = character.lower() if len(character.lower()) == 1 else character
        lower = lower if ord(lower) < CODES - 1 else "rare"
        if inside and open_word and not alone:
            words[-1] += lower
        elif inside:
            words.append(lower)
        open_word = inside and not alone
    return words


@settings(deadline=None)  # the first call makes the table of letters
@given(st.lists(TEXTS, max_size=6))
def test_words_are_equal_where_their_hashes_are(texts: list[str]) -> None:
    hashes, counts = hash_words_of(texts)
    words = [split_words(text) for text in texts]
    assert counts.tolist() == [len(of_text) for of_text in words]
    flat = [word for of_text in words for word in of_text]
    assert len(set(zip(flat, hashes.tolist()))) == len(set(flat)) == len(set(hashes.tolist()))


@settings(deadline=None)  # the first call makes the table of letters
@given(st.lists(TEXTS, max_size=6), st.integers(1, 6))
def test_many_texts_are_as_one_by_one(texts: list[str], n: int) -> None:
    hashes, counts = hash_words_of(texts)
    assert hashes.tolist() == [word for text in texts for word in hash_words(text).tolist()]
    grams, gram_counts = hash_ngrams_of(hashes, counts, n)
    single = [hash_ngrams(hash_words(text), n).tolist() for text in texts]
    assert gram_counts.tolist() == [len(of_text) for of_text in single]
    assert grams.tolist() == [gram for of_text in single for gram in of_text]


def test_case_punctuation_and_spacing_do_not_count() -> None:
    assert (hash_words("The  “Große”\nrÉsumé, no. 7!") == hash_words("the große-résumé no 7")).all()
    assert hash_words("résumé").tolist() != hash_words("resume").tolist()
    assert len(hash_words("日本語")) == 3
    assert len(hash_words("... — !")) == 0


def test_texts_longer_than_a_block() -> None:
    long = " ".join(f"word{number}" for number in range(BLOCK // 4))
    hashes, counts = hash_words_of(["a b", long, "", "c"])
    assert counts.tolist() == [2, BLOCK // 4, 0, 1]
    assert (hashes[2:-1] == np.concatenate([hash_words(word) for word in long.split()])).all()


def test_ngrams_are_equal_where_the_words_are() -> None:
    a, b = hash_words("one two three four five six"), hash_words("zero two three four five seven")
    assert len(hash_ngrams(a, 4)) == 3
    assert set(hash_ngrams(a, 4)) & set(hash_ngrams(b, 4)) == {hash_ngrams(a, 4)[1]}
    assert len(hash_ngrams(a, 9)) == 1
    assert len(hash_ngrams(a[:0], 4)) == 0
    assert hash_ngrams(hash_words("a b"), 2)[0] != hash_ngrams(hash_words("b a"), 2)[0]


@pytest.mark.parametrize("sizes", [[3, 0, 1, 40, 0], [20_000, 5, 17_000, 3], [0], []])
def test_signatures_are_minima(sizes: list[int]) -> None:
    """Of a permutation of the 32-bit numbers for each place; so adding a shingle can only lower it."""
    shingles = np.random.default_rng(0).integers(0, 1 << 63, sum(sizes), np.uint64)
    found = signatures_of(shingles, np.array(sizes, np.int64), 20)
    assert found.shape == (len(sizes), 20)
    each = signatures_of(shingles, np.ones(len(shingles), np.int64), 20)
    ends = np.cumsum([0, *sizes])
    for number, size in enumerate(sizes):
        here = each[ends[number] : ends[number + 1]]
        assert (found[number] == (here.min(axis=0) if size else LARGEST)).all()


def test_keys_depend_on_the_words_alone() -> None:
    texts = [prose(seed, 30) for seed in range(20)]
    keys = text_keys([*texts, "", *(text.upper().replace(" ", " - ") for text in texts)], KNOBS)
    assert keys.digests[:20] == keys.digests[21:]
    assert len(set(keys.digests)) == 21
    assert (keys.signatures[:20] == keys.signatures[21:]).all()
    assert keys.signatures.shape == (41, KNOBS.minhash_permutations)
    alone = [text_keys([text], KNOBS) for text in texts]
    assert [key.digests[0] for key in alone] == keys.digests[:20]
    assert (np.concatenate([key.signatures for key in alone]) == keys.signatures[:20]).all()


def test_jaccard_against_python_sets() -> None:
    pick = random.Random(0)
    sets = [np.unique(np.array(pick.choices(range(30), k=size), np.uint64)) for size in (0, 0, 1, 5, 20, 40, 60)]
    for a, b in combinations(sets, 2):
        union = set(a) | set(b)
        assert jaccard(a, b) == (len(set(a) & set(b)) / len(union) if union else 1.0)


def test_estimates_err_as_theory_says() -> None:
    """The error of a mean of Bernoulli trials; a poor family of hash functions would show here."""
    texts = []
    for seed in range(300):
        words = prose(seed, 20).split()
        pick = random.Random(seed)
        for place in pick.sample(range(len(words)), pick.choice([1, 2, 4, 8, 16, 32])):
            words[place] = f"changed{pick.randrange(10**6)}"
        texts += [prose(seed, 20), " ".join(words)]
    signatures = text_keys(texts, KNOBS).signatures
    sets = shingle_sets(texts, KNOBS.minhash_ngram)
    true = np.array([jaccard(sets[item], sets[item + 1]) for item in range(0, len(sets), 2)])
    errors = (signatures[::2] == signatures[1::2]).mean(axis=1) - true
    variance = (true * (1 - true) / KNOBS.minhash_permutations).mean()
    assert abs(errors.mean()) < 3 * (variance / len(errors)) ** 0.5
    assert np.sqrt((errors**2).mean()) == pytest.approx(variance**0.5, rel=0.15)


def test_band_keys_are_equal_where_the_bands_are() -> None:
    rows = np.random.default_rng(0).integers(0, 2, (200, 12), np.uint32)
    keys = band_keys(rows, 4)
    for band in range(4):
        cuts = [row.tobytes() for row in rows[:, 3 * band : 3 * band + 3]]
        assert len(set(zip(cuts, keys[:, band].tolist()))) == len(set(cuts)) == len(set(keys[:, band].tolist())) == 8
