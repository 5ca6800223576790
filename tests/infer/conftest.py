"""A small model with something to say, and engines around it with either runner."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from puna.infer.engine import Engine
from puna.infer.native.library import instruction_sets
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

RUNNERS = [
    "torch",
    pytest.param("native", marks=pytest.mark.skipif(not instruction_sets(), reason="no compiled kernels here")),
]


@pytest.fixture(scope="session")
def small_model() -> Llama:
    """Two layers, four heads sharing two; its logits are far enough apart for greedy choice to be stable."""
    shape = {"vocab_size": 256 + 16, "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 96}
    config = replace(PRESETS["1m"], max_seq_len=131_072, **shape)
    return Llama(config).init_weights(torch.Generator().manual_seed(3)).eval()


@pytest.fixture(params=RUNNERS)
def make_engine(small_model: Llama, request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Engine(**options) for the small model, a token being a byte. 600 blocks unless told otherwise."""

    def make(**options: object) -> Engine:
        tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
        chosen: dict = {"blocks": 600, "native": request.param == "native", **options}
        return Engine(small_model, tokenizer, **chosen)

    return make
