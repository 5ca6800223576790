"""The needle map of models that look back a known way."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from puna.infer.needle import find_needles
from puna.text.needle import NeedleMaker
from puna.text.tokenizer import Tokenizer


class Reader(nn.Module):
    """Says what followed the same token before, if that is at most `reach` tokens ago."""

    def __init__(self, vocab_size: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.lm_head = nn.Linear(vocab_size, vocab_size, bias=False)
        self.lm_head.weight.data = torch.eye(vocab_size)

    def hidden(self, tokens: Tensor) -> Tensor:
        said = torch.zeros_like(tokens[0])
        for place, token in enumerate(tokens[0]):
            first = max(0, place - self.reach)
            before = first + (tokens[0, first:place] == token).nonzero().flatten()
            said[place] = tokens[0, before[0] + 1] if len(before) else 0
        return nn.functional.one_hot(said, len(self.lm_head.weight)).float()[None]


def test_a_reader_finds_what_is_within_its_reach(word_tokenizer: Tokenizer):
    needles = NeedleMaker(word_tokenizer)
    text = np.arange(5000) % 90 + 1

    def found(reach: int, **changed: Any) -> np.ndarray:
        model: Any = Reader(word_tokenizer.vocab_size, reach)
        return find_needles(model, needles, text, **({"length": 400, "depths": 5, "haystacks": range(2)} | changed))

    assert found(400).tolist() == [[True] * 5] * 2
    assert found(1).tolist() == [[False] * 5] * 2
    half = found(220)  # of 280 tokens of text, with the questions after them
    assert not half[:, 0].any()
    assert half[:, 4].all()


def test_processes_can_share_the_haystacks(word_tokenizer: Tokenizer):
    needles, text = NeedleMaker(word_tokenizer), np.arange(5000) % 90 + 1
    model: Any = Reader(word_tokenizer.vocab_size, 200)
    of = lambda numbers: find_needles(model, needles, text, 300, 4, numbers)  # noqa: E731
    whole = of(range(6))
    assert np.array_equal(whole[::2], of(range(0, 6, 2)))
    assert np.array_equal(whole[1::2], of(range(1, 6, 2)))
    assert whole.any()
    assert not whole.all()
