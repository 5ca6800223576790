"""Topics are sampled down to their limits, by the hash of each document."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus.mix import keeps, topic_fractions
from puna.errors import PunaError
from puna.recipe import Corpus


def knobs(most: float = 1.0, **shares: float) -> Corpus:
    return Corpus(topic_model="m", max_topic_share=most, topic_shares=shares)  # pyright: ignore[reportCallIssue]


def test_a_topic_over_its_limit_ends_at_it():
    fractions = topic_fractions({"arts": 800, "science": 150, "law": 50}, knobs(arts=0.5))
    assert fractions == {"arts": 0.25, "law": 1.0, "science": 1.0}  # 200 of 400


def test_lowering_one_topic_brings_another_over_the_limit():
    sizes = {"a": 900, "b": 80, "c": 10, "d": 10}
    fractions = topic_fractions(sizes, knobs(0.4))
    left = {topic: sizes[topic] * fractions[topic] for topic in sizes}
    assert left["a"] / sum(left.values()) == pytest.approx(0.4)
    assert left["b"] / sum(left.values()) == pytest.approx(0.4)
    assert (fractions["c"], fractions["d"]) == (1, 1)


def test_documents_without_a_topic_and_empty_topics_have_no_limit():
    assert topic_fractions({"": 900, "a": 100, "b": 0}, knobs(0.1)) == {"": 1.0, "a": 1.0}
    assert topic_fractions({}, knobs(0.1)) == {}


def test_limits_that_cannot_be_met_are_an_error():
    with pytest.raises(PunaError, match=r"allow the 2 topics of this corpus 0.6 of it in all; raise them"):
        topic_fractions({"a": 5, "b": 5}, knobs(0.3))


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**12), min_size=1), st.floats(0.01, 1))
def test_nothing_is_over_the_limit_and_only_what_was_is_sampled(sizes: dict[str, int], most: float):
    if most * len(sizes) <= 1:
        with pytest.raises(PunaError):
            topic_fractions(sizes, knobs(most * 0.999))
        return
    fractions = topic_fractions(sizes, knobs(most))
    left = {topic: size * fractions[topic] for topic, size in sizes.items()}
    total = sum(left.values())
    for topic, size in left.items():
        assert 0 < fractions[topic] <= 1
        assert size <= most * total * (1 + 1e-6)
        assert fractions[topic] == 1 or size == pytest.approx(most * total, rel=1e-6)


def test_which_documents_stay_depends_on_their_names_alone():
    names = [f"https://example.org/{i}" for i in range(4000)]
    topics = ["arts" if i % 2 else "law" for i in range(4000)]
    stay = keeps(names, topics, {"arts": 0.25, "law": 1.0})
    assert stay[::2].all()
    assert 430 < stay[1::2].sum() < 570
    assert np.array_equal(keeps(names[::-1], topics[::-1], {"arts": 0.25})[::-1], stay)
    more = keeps(names, topics, {"arts": 0.5})
    assert (more | ~stay).all()  # a higher share keeps what a lower one kept
    assert keeps([], [], {}).shape == (0,)
