"""Guessing tokens ahead, so that one step of the model can judge several (arXiv 2211.17192).

Guesses come from the text itself (prompt lookup: what followed the last time the same tokens came) or from a small
draft model. The engine draws a token at every place as if it had come there alone, and goes on to the next place for as
long as the token drawn is the token guessed. So guesses decide how many tokens a step gives and never which: outputs
are those of plain decoding, draw by draw. A draft model draws with the very numbers that the engine will draw with,
which makes the two agree about as often as their probabilities do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from puna.infer.request import Request
from puna.infer.runner import Runner, batch_of
from puna.infer.sampler import choose
from puna.infer.scheduler import Chunk

NGRAM = 3
"""Tokens that must be the same as before for a guess from the text."""


class NGrams:
    """Where each run of NGRAM tokens of a growing text was last seen."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        self._read = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the last earlier place where the text's last NGRAM tokens stand."""
        for end in range(max(NGRAM, self._read + 1), len(tokens)):
            self._after[tuple(tokens[end - NGRAM : end])] = end
        self._read = max(self._read, len(tokens) - 1)
        place = self._after.get(tuple(tokens[-NGRAM:]))
        return [] if place is None else list(tokens[place : place + most])


class Draft:
    """A small model that keeps its keys and values in blocks of the same numbers as the engine's."""

    def __init__(self, runner: Runner, cache: Tensor) -> None:
        self._runner, self._cache = runner, cache

    def follow(self, chunks: Sequence[Chunk]) -> None:
        """Compute what the engine computes of prompts."""
        if chunks:
            self._runner.step(*batch_of(chunks), self._cache, torch.empty(0, dtype=torch.int32))
        for chunk in chunks:
            chunk.request.drafted = chunk.end

    def guess(self, requests: Sequence[Request]) -> None:
        """Fill in the guesses of requests, as many as there is room for in each one's list."""
        counts = {request.id: len(request.guesses) for request in requests}
        for request in requests:
            request.guesses = []
        while going := [request for request in requests if len(request.guesses) < counts[request.id]]:
            chunks = [Chunk(r, r.drafted, len(r.tokens) + len(r.guesses)) for r in going]
            inputs = batch_of(chunks)
            logits = self._runner.step(*inputs, self._cache, inputs[1][1:] - 1)
            uniforms = [request.uniform(len(request.guesses)) for request in going]
            for chunk, token in zip(chunks, choose(logits, [r.sampling for r in going], uniforms)):
                chunk.request.drafted = chunk.end
                chunk.request.guesses.append(token)
