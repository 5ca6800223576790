"""Duplicates against exact Jaccard similarity."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus import dedup
from puna.corpus.shingles import hash_ngrams, hash_words

from .conftest import prose

PERMUTATIONS, BANDS, N, THRESHOLD = 112, 14, 5, 0.8


def variants(seed: int, changes: tuple[int, ...]) -> list[str]:
    """A text, and copies in which so many of its words are replaced, one here and one there."""
    words = prose(seed, 20).split()
    texts = [" ".join(words)]
    for number, count in enumerate(changes):
        pick = random.Random(f"{seed} {number}")
        copy = list(words)
        for place in pick.sample(range(len(copy)), count):
            copy[place] = f"changed{pick.randrange(10**6)}"
        texts.append(" ".join(copy))
    return texts


def sets_of(texts: list[str]) -> list[np.ndarray]:
    return [dedup.shingles(hash_words(text), N) for text in texts]


def near(sets: list[np.ndarray], best_first: list[int], threshold: float = THRESHOLD) -> dict[int, int]:
    signatures = np.stack([dedup.signature(one, PERMUTATIONS) for one in sets])
    return dedup.near_copies(signatures, sets.__getitem__, best_first, BANDS, threshold)


@pytest.fixture(scope="module")
def corpus() -> list[np.ndarray]:
    """60 texts, each with copies of a similarity of 0.4 to 1."""
    return sets_of([text for seed in range(60) for text in variants(seed, (1, 2, 4, 6, 8, 12, 20))])


def test_ngrams_are_equal_where_the_words_are() -> None:
    a, b = hash_words("one two three four five six"), hash_words("zero two three four five seven")
    assert len(hash_ngrams(a, 4)) == 3
    assert set(hash_ngrams(a, 4)) & set(hash_ngrams(b, 4)) == {hash_ngrams(a, 4)[1]}
    assert len(hash_ngrams(a, 9)) == 1
    assert len(hash_ngrams(a[:0], 4)) == 0
    assert hash_ngrams(hash_words("a b"), 2)[0] != hash_ngrams(hash_words("b a"), 2)[0]


def test_jaccard_against_python_sets(corpus: list[np.ndarray]) -> None:
    for a, b in combinations(corpus[:12], 2):
        expected = len(set(a) & set(b)) / len(set(a) | set(b))
        assert dedup.jaccard(a, b) == pytest.approx(expected)


def test_estimates_err_as_theory_says(corpus: list[np.ndarray]) -> None:
    """The error of a mean of Bernoulli trials; a poor family of hash functions would show here."""
    signatures = [dedup.signature(one, PERMUTATIONS) for one in corpus]
    errors, variances = [], []
    for first in range(0, len(corpus), 8):
        for a, b in combinations(range(first, first + 8), 2):
            true = dedup.jaccard(corpus[a], corpus[b])
            errors.append((signatures[a] == signatures[b]).mean() - true)
            variances.append(true * (1 - true) / PERMUTATIONS)
    assert abs(np.mean(errors)) < 0.005
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt(np.mean(variances)), rel=0.15)


def test_recall_and_precision_against_exact_jaccard(corpus: list[np.ndarray]) -> None:
    order = list(range(len(corpus)))
    duplicate_of = near(corpus, order)
    # precision is exact: every dropped text is as similar to a kept one as the threshold says
    for item, kept in duplicate_of.items():
        assert kept not in duplicate_of
        assert dedup.jaccard(corpus[item], corpus[kept]) >= THRESHOLD
    # recall: the same greedy choice with every pair compared
    exact: dict[int, int] = {}
    for item in order:
        rivals = [other for other in order[:item] if other not in exact and other // 8 == item // 8]
        best = max(rivals, key=lambda other: dedup.jaccard(corpus[item], corpus[other]), default=None)
        if best is not None and dedup.jaccard(corpus[item], corpus[best]) >= THRESHOLD:
            exact[item] = best
    assert len(exact) > 100
    assert len(exact.keys() & duplicate_of.keys()) >= 0.98 * len(exact)


def test_unlike_texts_are_not_chained_together() -> None:
    """A resembles B and B resembles C: with B kept both go, with A kept only B goes."""
    words = prose(1, 20).split()
    cut = len(words) // 11
    a, b, c = words[: -2 * cut], words[cut:-cut], words[2 * cut :]
    sets = sets_of([" ".join(part) for part in (a, b, c)])
    assert dedup.jaccard(sets[0], sets[1]) > THRESHOLD > dedup.jaccard(sets[0], sets[2])
    assert near(sets, [1, 0, 2]) == {0: 1, 2: 1}
    assert near(sets, [0, 1, 2]) == {1: 0}


def test_the_order_of_the_items_does_not_matter(corpus: list[np.ndarray]) -> None:
    some = corpus[:80]
    shuffled = random.Random(1).sample(range(len(some)), len(some))
    found = near([some[item] for item in shuffled], sorted(range(len(some)), key=shuffled.__getitem__))
    assert {shuffled[a]: shuffled[b] for a, b in found.items()} == near(some, list(range(len(some))))


def test_a_long_document_equals_its_parts_put_together() -> None:
    """Sets larger than what is permuted at once."""
    big = np.unique(np.random.default_rng(0).integers(0, 1 << 62, 5000, np.uint64))
    parts = [dedup.signature(big[start : start + 700], PERMUTATIONS) for start in range(0, 5000, 700)]
    assert (dedup.signature(big, PERMUTATIONS) == np.min(parts, axis=0)).all()


def test_the_newest_version_of_a_page_stays() -> None:
    assert dedup.older_versions(["a", "b", "a", "a", "c"], ["2020", "2021", "2024", "2022", ""]) == {0: 2, 3: 2}
    assert dedup.older_versions(["a", "a"], ["2020", "2020"]) == {1: 0}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "2020", "2021"])), max_size=12))
def test_one_version_of_each_page_stays(pages: list[tuple[str, str]]) -> None:
    older = dedup.older_versions([url for url, _ in pages], [date for _, date in pages])
    kept = [item for item in range(len(pages)) if item not in older]
    assert sorted(pages[item][0] for item in kept) == sorted({url for url, _ in pages})
    for item, newest in older.items():
        assert pages[item][0] == pages[newest][0]
        assert pages[item][1] <= pages[newest][1]
        assert newest in kept


def test_the_best_of_exact_copies_stays() -> None:
    assert dedup.exact_copies([b"x", b"y", b"x", b"x"], [2, 1, 0, 3]) == {0: 2, 3: 2}
