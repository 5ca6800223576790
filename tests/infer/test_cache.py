"""The books on blocks: nothing is lost over thousands of requests that come, go and are pushed out."""

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.infer.cache import BLOCK, BlockManager, block_key
from puna.infer.engine import Engine, Sampling
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names


class Dice:
    """A runner that computes nothing: logits from a generator."""

    def __init__(self, vocab: int) -> None:
        self.vocab, self.generator = vocab, torch.Generator().manual_seed(0)

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        return torch.randn(len(wanted), self.vocab, generator=self.generator)


@pytest.fixture
def dice() -> Engine:
    """An engine of 32 blocks whose model is never run."""
    config = replace(PRESETS["1m"], vocab_size=272, dim=8, layers=1, heads=1, kv_heads=1, ffn_dim=8, max_seq_len=512)
    engine = Engine(
        Llama(config), Tokenizer({bytes([i]): i for i in range(256)}, special_names(16)), blocks=32, budget=64, rows=12
    )
    engine._runner = Dice(272)
    return engine


def check_books(engine: Engine) -> None:
    """Every block is empty, idle and known, or held by exactly those requests that list it."""
    manager = engine._manager
    held = np.zeros(engine.total_blocks + 1, int)
    for request in engine._scheduler.running:
        np.add.at(held, request.blocks, 1)
        assert len(set(request.blocks)) == len(request.blocks)
        assert len(request.blocks) * BLOCK >= request.computed
    assert held.tolist() == manager._holders
    assert not any(request.blocks for request in engine._scheduler.waiting)
    unheld = {block for block in range(1, len(held)) if not held[block]}
    assert sorted([*manager._empty, *manager._idle]) == sorted(unheld)
    assert set(manager._idle) <= set(manager._key_of)
    assert {key: block for block, key in manager._key_of.items()} == manager._block_of
    assert set(manager._logprobs) <= set(manager._block_of)


def test_ten_thousand_operations_leak_no_block(dice: Engine, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(0)
    preempted = []
    preempt = dice._scheduler._preempt
    monkeypatch.setattr(dice._scheduler, "_preempt", lambda one: (preempted.append(one.id), preempt(one)))
    shared = random.integers(256, size=200).tolist()
    alive: set[int] = set()
    counts = {"add": 0, "abort": 0, "step": 0}
    for i in range(10_000):
        what = random.choice(["add", "abort", "step", "step", "step"]) if len(alive) < 30 else "step"
        counts[what] += 1
        if what == "add":
            prompt = shared[: random.integers(1, 200)] + random.integers(256, size=random.integers(20)).tolist()
            asked = {"speculate": random.choice(["off", "ngram"]), "prompt_logprobs": 0 if i % 10 == 0 else None}
            alive.add(dice.add(prompt, Sampling(int(random.integers(1, 200)), float(random.random()), **asked)))
        elif what == "abort" and alive:
            dice.abort(int(random.choice(sorted(alive))))
        else:
            alive -= {output.request for output in dice.step() if output.finish}
        if i % 50 == 0:
            check_books(dice)
    assert min(counts.values()) > 1000
    assert len(preempted) > 50
    while alive:
        alive -= {output.request for output in dice.step() if output.finish}
    check_books(dice)
    assert (dice.waiting, dice.running, dice.free_blocks) == (0, 0, 32)
    assert dice._requests == {}


def test_memory_does_not_grow(dice: Engine):
    """A short soak; benchmarks/soak.py runs a longer one."""
    process, random = psutil.Process(), np.random.default_rng(0)
    used = []
    for _ in range(10):
        for _ in range(2):
            prompts = [random.integers(256, size=random.integers(1, 90)).tolist() for _ in range(12)]
            dice.generate(prompts, Sampling(20, 1.0, logprobs=2, prompt_logprobs=2))
        used.append(process.memory_info().rss)
    assert max(used[5:]) < 1.01 * max(used[:5])


def test_blocks_are_known_by_all_that_came_before():
    first = block_key(b"", range(BLOCK))
    assert block_key(b"", range(BLOCK)) == first
    assert len({first, block_key(first, range(BLOCK)), block_key(b"", range(1, BLOCK + 1))}) == 3


def test_the_longest_idle_block_goes_first():
    manager = BlockManager(4)
    blocks = [manager.take() for _ in range(3)]
    keys = [bytes([i]) for i in range(3)]
    for block, key in zip(blocks, keys):
        manager.publish(block, key)
    assert manager.free == 0
    manager.release(blocks[:2])
    manager.release(blocks[2:])
    assert manager.free == 3
    assert manager.take() == blocks[1]  # the end of a request before its beginning
    assert [manager.find(key) for key in keys] == [blocks[0], None, blocks[2]]
    manager.hold(blocks[0])
    assert manager.take() == blocks[2]
    assert manager.free == 0
    manager.forget_all()
    assert manager.find(keys[0]) is None
    manager.release([blocks[0]])
    assert manager.free == 1


def test_the_largest_request_fits_exactly(dice: Engine):
    dice.total_blocks = 20
    with pytest.raises(PunaError, match="need 21 blocks"):
        dice.add([1] * 300, Sampling(21))
    dice.add([1] * 300, Sampling(20))
