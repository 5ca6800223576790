"""A model of a few thousand weights and the options to train it in milliseconds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.log import Log
from puna.model.llama import PRESETS, Llama, LlamaConfig
from puna.recipe import Training
from puna.train.batches import IGNORE, Batch


class RandomRows:
    """Random rows of two documents; `gaps` leaves a different number of labels in every row."""

    def __init__(self, rows: int, seq_len: int, vocab_size: int, gaps: bool = False) -> None:
        random = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(vocab_size, (rows, seq_len), generator=random)
        self.labels = torch.randint(vocab_size, (rows, seq_len), generator=random)
        if gaps:
            keep = torch.rand((rows, 1), generator=random)
            self.labels[torch.rand((rows, seq_len), generator=random) > keep] = IGNORE
        self.documents = (torch.arange(seq_len) >= seq_len // 3).long().expand(rows, seq_len)
        self.sources = ("text", "code")
        self.numbers = torch.zeros_like(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, numbers: Sequence[int]) -> Batch:
        index = torch.tensor(list(numbers))
        sources = self.numbers[index % len(self.numbers)]
        return Batch(self.tokens[index], self.labels[index], self.documents[index], sources=sources)


@pytest.fixture
def config() -> LlamaConfig:
    return replace(PRESETS["1m"], vocab_size=61, dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64)


@pytest.fixture
def make_model(config: LlamaConfig) -> Callable[[], Llama]:
    """The same weights at every call."""
    return lambda: Llama(config).init_weights(torch.Generator().manual_seed(1))


@pytest.fixture
def random_rows(config: LlamaConfig) -> Callable[..., RandomRows]:
    return lambda rows, gaps=False: RandomRows(rows, 16, config.vocab_size, gaps)


@pytest.fixture
def make_options() -> Callable[..., Training]:
    def make(**changed: Any) -> Training:
        values: dict[str, Any] = {
            "seq_len": 16, "batch_rows": 4, "micro_rows": 2, "peak_lr": 1e-2, "warmup_steps": 2, "final_lr": 0.1,
            "precision": "fp32", "compile": "off", "processes": 1,
        }  # fmt: skip
        return Training(**(values | changed))

    return make


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log", "test")
