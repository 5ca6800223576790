"""Guessing ahead changes how many steps an output takes and nothing else."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from puna.infer.engine import Engine, Sampling
from puna.infer.speculative import NGrams
from puna.model.llama import Llama

Make = Callable[..., Engine]
Guess = Literal["ngram", "draft"]


@pytest.fixture(scope="module")
def draft(small_model: Llama) -> Llama:
    """A model that often, not always, agrees: the model itself with a little noise."""
    model = Llama(small_model.config)
    model.load_state_dict(small_model.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def prompts(count: int) -> list[list[int]]:
    """Texts that repeat themselves."""
    random = np.random.default_rng(2)
    return [random.integers(256, size=5 + i % 7).tolist() * 4 for i in range(count)]


def run(engine: Engine, sampling: Sampling, count: int = 10) -> tuple[list[list[tuple[int, float]]], int]:
    """Tokens with log-probabilities, and how often a request was given some."""
    found: dict[int, list[tuple[int, float]]] = {
        engine.add(prompt, sampling, number=i): [] for i, prompt in enumerate(prompts(count))
    }
    turns = 0
    while engine.running or engine.waiting:
        for output in engine.step():
            turns += 1
            assert output.logprobs is not None
            assert [one.token for one in output.logprobs] == output.tokens
            found[output.request] += [(one.token, one.logprob) for one in output.logprobs]
    assert engine.free_blocks == engine.total_blocks
    return list(found.values()), turns


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("guess", ["ngram", "draft"])
def test_outputs_are_those_of_plain_decoding(make_engine: Make, draft: Llama, guess: Guess, temperature: float):
    sampling = Sampling(40, temperature, seed=3, logprobs=0)
    plain, turns = run(make_engine(), sampling)
    found, fewer = run(make_engine(draft=draft), replace(sampling, speculate=guess))
    assert [[token for token, _ in output] for output in found] == [[token for token, _ in output] for output in plain]
    for output, wanted in zip(found, plain):
        assert [value for _, value in output] == pytest.approx([value for _, value in wanted], abs=1e-5)
    if guess == "draft" or temperature == 0:
        assert fewer < 0.85 * turns
    scarce, _ = run(make_engine(draft=draft, blocks=9), replace(sampling, speculate=guess))
    assert [[token for token, _ in output] for output in scarce] == [[token for token, _ in output] for output in plain]


@pytest.mark.parametrize("guess", ["ngram", "draft"])
def test_samples_have_the_exact_probabilities(make_engine: Make, draft: Llama, guess: Guess):
    """All outcomes of three draws among three tokens each, over 2000 outputs, against the model's own softmax."""
    engine, prompt = make_engine(draft=draft, rows=512, budget=4096), [*([65, 66, 67] * 4), 65, 66]
    (drawn,) = engine.generate([prompt], Sampling(3, 1.0, seed=1, top_k=3, speculate=guess), n=2000, batch=512)
    outcomes: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for before, chance in outcomes.items():
            with torch.no_grad():
                best = engine.model(torch.tensor([[*prompt, *before]]))[0, -1].double().topk(3)
            for token, share in zip(best.indices.tolist(), best.values.softmax(-1).tolist()):
                longer[*before, token] = chance * share
        outcomes = longer
    counts = Counter(map(tuple, drawn))
    assert set(counts) <= set(outcomes)
    cells = [(counts[outcome], 2000 * chance) for outcome, chance in outcomes.items()]
    rare = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5] + [(sum(n for n, _ in rare), sum(e for _, e in rare))] * bool(rare)
    freedom = len(cells) - 1
    assert freedom > 5
    assert abs(sum((n - e) ** 2 / e for n, e in cells) - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_guess_is_what_followed_the_last_time():
    ngrams, text = NGrams(), [1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7]
    assert ngrams.guess(text, 4) == []
    text += [1, 2, 3]
    assert ngrams.guess(text, 4) == [5, 6, 7, 1]
    assert ngrams.guess(text, 2) == [5, 6]
    text += [4]
    assert ngrams.guess(text, 3) == [9, 1, 2]
    assert ngrams.guess([1, 2], 3) == []
