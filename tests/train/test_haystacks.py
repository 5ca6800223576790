"""Rows that become haystacks: as many as asked for, the same whoever asks, of which only the answers are learnt."""

import numpy as np
import pytest
import torch

from puna.text.needle import NeedleMaker
from puna.text.tokenizer import Tokenizer
from puna.train.batches import IGNORE
from puna.train.haystacks import REPEATS, Haystacks

from .conftest import RandomRows


@pytest.fixture
def haystacks(word_tokenizer: Tokenizer) -> Haystacks:
    return Haystacks(RandomRows(200, 160, 250), NeedleMaker(word_tokenizer), 0.3, seed=4)


def test_a_share_of_the_rows_become_haystacks_and_the_others_stay(haystacks: Haystacks):
    batch, plain = haystacks.rows(range(200)), haystacks.batches.rows(range(200))
    changed = (batch.tokens != plain.tokens).any(1)
    assert 40 <= changed.sum() <= 80
    assert torch.equal(batch.labels[~changed], plain.labels[~changed])
    assert torch.equal(batch.documents[~changed], plain.documents[~changed])
    assert not batch.documents[changed].any()  # one document, so that the question can see the needle
    assert plain.documents[changed].any()


def test_haystacks_are_a_source_of_their_own(word_tokenizer: Tokenizer):
    rows = RandomRows(20, 160, 250)
    haystacks = Haystacks(rows, NeedleMaker(word_tokenizer), 0.5, seed=4)
    assert haystacks.sources == ("text", "code", "needles")
    batch = haystacks.rows(range(20))
    changed = (batch.tokens != rows.tokens).any(1)
    assert 0 < changed.sum() < 20
    assert batch.sources is not None
    assert torch.equal(batch.sources, 2 * changed[:, None].expand_as(batch.sources))


def test_a_row_depends_on_the_seed_and_its_number_alone(haystacks: Haystacks):
    together = haystacks.rows(range(20))
    alone = [haystacks.rows([number]) for number in reversed(range(20))][::-1]
    assert torch.equal(together.tokens, torch.cat([batch.tokens for batch in alone]))
    assert torch.equal(together.labels, torch.cat([batch.labels for batch in alone]))
    other = Haystacks(haystacks.batches, haystacks.needles, haystacks.share, seed=5).rows(range(20))
    assert not torch.equal(together.tokens, other.tokens)


def test_only_the_answers_are_learnt(haystacks: Haystacks):
    batch, plain = haystacks.rows(range(200)), haystacks.batches.rows(range(200))
    words = haystacks.needles.words
    for row in (batch.tokens != plain.tokens).any(1).nonzero().flatten().tolist():
        tokens, labels = batch.tokens[row].numpy(), batch.labels[row].numpy()
        answers = np.flatnonzero(labels != IGNORE)
        assert np.isin(labels[answers], words).all()
        assert np.isin(tokens[answers], words).all(), "each after its key"
        assert np.array_equal(tokens[answers[:-1] + 1], labels[answers[:-1]])
        assert answers.tolist() == list(range(159, 159 - 2 * len(answers), -2))[::-1]
        assert len(answers) / REPEATS in (1, 2, 3, 4)  # of at most 3 * 161 // (4 * (12 + 2 * 8))


def test_a_longer_row_has_more_needles(word_tokenizer: Tokenizer):
    needles = NeedleMaker(word_tokenizer)
    for length, most in ((160, 4), (1000, 26), (4000, needles.most)):
        batch = Haystacks(RandomRows(60, length, 250), needles, 1 - 1e-9, seed=1).rows(range(60))
        counts = (batch.labels != IGNORE).sum(1) / REPEATS
        assert counts.min() == 1
        assert 0.9 * most < counts.max() <= most
