"""Haystacks: needles lie where they were asked for, every question has one answer, and only one."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.text.needle import WORDS, NeedleMaker
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names


@pytest.fixture(scope="module")
def needles(word_tokenizer: Tokenizer) -> NeedleMaker:
    return NeedleMaker(word_tokenizer)


def text(length: int, seed: int = 0) -> np.ndarray:
    """Bytes of letters, with documents' ends among them."""
    tokens = np.random.default_rng(seed).integers(97, 123, length)
    tokens[::50] = 256 + 140
    return tokens


def test_a_haystack_reads_as_it_should(needles: NeedleMaker, word_tokenizer: Tokenizer):
    made = needles.make(text(300), 200, [0.0, 0.5, 1.0], np.random.default_rng(3))
    assert len(made.tokens) == 200
    words = word_tokenizer.decode(made.tokens.tolist())
    facts = re.findall("\nRemember( [a-z]{3} [a-z]{3})\\.", words)
    assert len(facts) == 3
    assert words.startswith("<|begin_of_text|>\nRemember" + facts[0])
    told, questions = words.rsplit("\nRemember", 1)
    assert told.endswith(facts[2] + ".")  # the last needle ends the text
    assert sorted(re.findall(" [a-z]{3} [a-z]{3}", questions)) == sorted(facts)
    assert len(questions) == sum(map(len, facts))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(300, 900), st.integers(1, 5), st.integers(0, 99))
def test_every_answer_stands_once_in_the_text(
    needles: NeedleMaker, depths: list[float], length: int, repeats: int, seed: int
):
    made = needles.make(text(1000, seed), length, depths, np.random.default_rng(seed), repeats)
    tokens, count = made.tokens, len(depths)
    assert len(tokens) == length
    assert not (tokens[1:] == needles.bos_id).any()
    assert np.bincount(made.asked).tolist() == [repeats] * count
    assert made.answers.tolist() == list(range(length - 2 * count * repeats + 1, length, 2))
    asked_from = length - len(needles.lead) - 2 * count * repeats
    for number, place in zip(made.asked, made.answers):
        key, value = tokens[place - 1], tokens[place]
        [told] = np.flatnonzero(tokens[:asked_from] == key)  # a key is nowhere else
        assert tokens[told + 1] == value
        around = 1 + made.depths[number] * (asked_from - 1 - count * needles.needle_tokens)
        assert 0 <= told - around <= count * needles.needle_tokens


def test_draws_depend_on_the_generator_alone(needles: NeedleMaker):
    one, again, other = (needles.make(text(500), 400, [0.2, 0.7], np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one.tokens, again.tokens)
    assert not np.array_equal(one.tokens, other.tokens)


def test_a_text_too_short_is_repeated_and_one_full_of_words_has_its_rarest_for_keys(needles: NeedleMaker):
    made = needles.make(text(40), 400, [0.5], np.random.default_rng(0))
    assert len(made.tokens) == 400
    words = needles.words[-WORDS:]
    common = np.concatenate([words, words[5:]])
    length = len(common) + 1 + 5 * needles.needle_tokens + len(needles.lead) + 2 * 5
    made = needles.make(common, length, [0, 0.25, 0.5, 0.75, 1], np.random.default_rng(0))
    assert set(made.tokens[made.answers - 1]) == set(words[:5])


def test_many_needles_are_of_more_words(needles: NeedleMaker):
    few, many = (needles.make(text(4000), 3000, np.linspace(0, 1, n), np.random.default_rng(0)) for n in (16, 64))
    pairs = [set(made.tokens[made.answers - 1]) | set(made.tokens[made.answers]) for made in (few, many)]
    assert pairs[0] <= set(needles.words[-WORDS:])
    assert len(set(many.tokens[many.answers - 1])) == 64


def test_what_cannot_be_made_is_named(needles: NeedleMaker):
    with pytest.raises(PunaError, match=r"9 needles of 12 tokens, each asked for 1x, do not fit into 100 tokens"):
        needles.make(text(300), 100, [0.5] * 9, np.random.default_rng(0))
    with pytest.raises(PunaError, match="65 needles are too many for one haystack: at most 64"):
        needles.make(text(3000), 2000, [0.5] * 65, np.random.default_rng(0))
    small = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    with pytest.raises(PunaError, match=r"32 entries .* it has 0; raise tokenizer.vocab_size"):
        NeedleMaker(small)
