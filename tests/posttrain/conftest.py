"""A tokenizer of single bytes and a small model directory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.log import Log
from puna.model.llama import PRESETS, Llama
from puna.recipe import Recipe, parse_recipe
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.save import save_model

TRAINING = {"micro_rows": 2, "precision": "fp32", "compile": "off", "processes": 1, "warmup_steps": 2}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))


@pytest.fixture
def model_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    config = replace(PRESETS["1m"], vocab_size=tokenizer.vocab_size, dim=48, layers=2, heads=2, kv_heads=1, ffn_dim=96)
    save_model(Llama(config).init_weights(torch.Generator().manual_seed(2)), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    def make(**sections: dict[str, Any]) -> Recipe:
        sections = {name: (TRAINING if name in ("sft", "dpo") else {}) | knobs for name, knobs in sections.items()}
        return parse_recipe({"name": "test", **sections}, "test")

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "making" / "out").mkdir(parents=True)
    (tmp_path / "making" / "work").mkdir()
    return tmp_path / "making" / "out"


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log", "test")
