"""Meta's published model code as a reference."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn


class _Linear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool, **_: object) -> None:
        super().__init__(inputs, outputs, bias=bias)


class _Embedding(nn.Embedding):
    def __init__(self, vocab_size: int, dim: int, **_: object) -> None:
        super().__init__(vocab_size, dim)


@pytest.fixture(scope="session")
def meta() -> Iterator[SimpleNamespace]:
    """`llama_models`, with plain layers for fairscale's model-parallel ones, as they are on one process.

    .model: llama3/model.py; .args: llama3/args.py; .checkpoint: checkpoint.py, which merges shards.
    """
    pytest.importorskip("llama_models", reason="needs the test dependency llama-models")
    stubs = {name: ModuleType(name) for name in ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel")}
    initialize = ModuleType("fairscale.nn.model_parallel.initialize")
    layers = ModuleType("fairscale.nn.model_parallel.layers")
    vars(initialize).update(get_model_parallel_world_size=lambda: 1, get_model_parallel_rank=lambda: 0)
    vars(layers).update(ColumnParallelLinear=_Linear, RowParallelLinear=_Linear, VocabParallelEmbedding=_Embedding)
    stubs |= {module.__name__: module for module in (initialize, layers)}
    vars(stubs["fairscale.nn.model_parallel"]).update(initialize=initialize, layers=layers)
    vars(stubs["fairscale.nn"]).update(model_parallel=stubs["fairscale.nn.model_parallel"])
    vars(stubs["fairscale"]).update(nn=stubs["fairscale.nn"])
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        yield SimpleNamespace(
            model=importlib.import_module("llama_models.llama3.model"),
            args=importlib.import_module("llama_models.llama3.args"),
            checkpoint=importlib.import_module("llama_models.checkpoint"),
        )
