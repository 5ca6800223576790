"""What a request gets does not depend on what shares its steps, nor on how its prompt is cut."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from puna.infer.engine import Engine, Sampling
from puna.infer.native.runner import native_runner
from puna.infer.runner import TorchRunner
from puna.model.llama import Llama

Make = Callable[..., Engine]


def run(engine: Engine, prompts: list[list[int]], sampling: Sampling) -> list[list[tuple[int, float]]]:
    """Tokens and their log-probabilities, of all requests together."""
    found: dict[int, list[tuple[int, float]]] = {engine.add(prompt, sampling): [] for prompt in prompts}
    while engine.running or engine.waiting:
        for output in engine.step():
            found[output.request] += [(one.token, one.logprob) for one in output.logprobs or []]
    return list(found.values())


def test_greedy_is_the_same_alone_and_among_64_to_the_bit(make_engine: Make):
    """Also where prompts are cut by a small budget, and where they begin alike."""
    random = np.random.default_rng(8)
    lengths = [1, 2, 3, 5, 16, 17, 33, 100, 190, 250, 330, 500]
    shared = random.integers(256, size=70).tolist()
    prompts = [(shared if i % 3 == 0 else []) + random.integers(256, size=lengths[i % 12]).tolist() for i in range(64)]
    sampling = Sampling(12, logprobs=0, ignore_stop=True)
    together = run(make_engine(blocks=1200, budget=333, rows=64), prompts, sampling)
    for i in range(0, 64, 5):
        assert run(make_engine(), [prompts[i]], sampling) == [together[i]], f"prompt {i} of {len(prompts[i])} tokens"


def test_a_prompt_in_chunks_is_the_prompt_at_once(make_engine: Make):
    """8,800 tokens, past the original context of the rope scaling, against one pass of the model."""
    ids = np.random.default_rng(1).integers(256, size=8800).tolist()
    engine = make_engine(budget=3000, rows=2)
    with torch.no_grad():
        wanted = engine.model(torch.tensor([ids]))[0].log_softmax(-1)
    engine.add(ids, Sampling(1, prompt_logprobs=0, logprobs=0))
    found = []
    steps = 0
    while not found:
        found = engine.step()
        steps += 1
    assert steps == 3
    scores = [one.logprob for one in (found[0].prompt_logprobs or [])[1:] if one]
    reference = wanted[range(len(ids) - 1), ids[1:]]
    assert (torch.tensor(scores) - reference).abs().max() < 1e-5


class Zeros:
    """A plain cache: zero keys and values before the first token."""

    def __init__(self, length: int) -> None:
        self.length = length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(*k.shape[:2], self.length, k.shape[3])
        return torch.cat([zeros, k], 2), torch.cat([zeros, v], 2)


@pytest.mark.parametrize("kind", ["torch", "native"])
def test_the_last_positions_of_128k(small_model: Llama, kind: str):
    """Eight tokens up to position 131,071, after zeros, against the model with a plain cache."""
    runner = TorchRunner(small_model) if kind == "torch" else native_runner(small_model)
    if runner is None:
        pytest.skip("no compiled kernels here")
    config, before = small_model.config, 131_072 - 8
    tokens = torch.arange(40, 48, dtype=torch.int32)
    cache = torch.zeros(config.layers, 2, 2, 16, config.kv_heads, config.head_dim)
    tables = torch.zeros(1, 8192, dtype=torch.int32)
    tables[0, -1] = 1
    numbers = [torch.tensor(x, dtype=torch.int32) for x in ([0, 8], [131_072], range(8))]
    with torch.inference_mode():
        found = runner.step(tokens, numbers[0], numbers[1], tables, cache, numbers[2])
        mask = torch.ones(8, 131_072, dtype=torch.bool).tril(before)
        positions = torch.arange(before, 131_072)[None]
        wanted = small_model(tokens[None].long(), positions, mask=mask, cache=Zeros(before))[0]
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
