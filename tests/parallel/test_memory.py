"""A process never holds more of a model than its own part and a tensor or two: counted in elements that are alive."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from puna.log import Log
from puna.model.llama import Llama, LlamaConfig, count_parameters
from puna.model.weights import empty_model, load_hf, save_hf
from puna.model.weights_meta import load_meta, save_meta
from puna.parallel.checkpoint import load_parts
from puna.parallel.parts import Parts
from puna.parallel.place import local, where
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.train.launch import World
from puna.train.losses import NextToken
from puna.train.optimizer import make_optimizer

CONFIG = LlamaConfig(512, dim=64, layers=8, heads=4, kv_heads=2, ffn_dim=256)
LARGEST = CONFIG.vocab_size * CONFIG.dim
"""Elements of the embedding, the largest tensor."""
PROCESSES = 8
LAYOUTS = {
    "fsdp": Layout(shard=8),
    "pp": Layout(pp=4, shard=2),
    "tp pp": Layout(tp=2, pp=2),
    "tp cp": Layout(tp=2, cp=2),
}


class Alive(TorchDispatchMode):
    """Counts the elements of the tensors on the CPU that were made since it began and still live, and their peak; what
    is mapped from a file is not made."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if function is torch.ops.aten.from_file.default:
            return result
        given = {storage._cdata for storage, _ in _storages((args, kwargs))}
        for storage, itemsize in _storages(result):
            if storage._cdata not in given:  # no view
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes() // itemsize)
        self.held = {key: (ref, size) for key, (ref, size) in self.held.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return result


def _storages(tree: Any) -> Iterator[tuple[torch.UntypedStorage, int]]:
    for tensor in (local(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)):
        if tensor.device.type == "cpu":
            yield tensor.untyped_storage(), tensor.itemsize


@contextmanager
def pretended(rank: int) -> Iterator[World]:
    """As if this were one of eight processes: what it sends goes nowhere."""
    dist.init_process_group("fake", rank=rank, world_size=PROCESSES, store=FakeStore())
    try:
        yield World(rank, PROCESSES)
    finally:
        dist.destroy_process_group()


def cut(model: Llama, layout: Layout, world: World) -> Parts:
    knobs = {"seq_len": 64, "batch_rows": 8, "precision": "fp32", "layout": layout}
    return Parts(model, NextToken(), Training.model_validate(knobs), world, compiled=False)


def check(parts: Parts, whole: dict[str, torch.Tensor], peak: int) -> None:
    held = sum(local(parameter).numel() for parameter in parts.parameters.values())
    for name, parameter in parts.parameters.items():
        assert torch.equal(local(parameter), whole[name][where(parameter)]), name
    assert held < count_parameters(CONFIG) / 2
    assert held < peak < held + 2.1 * LARGEST


@pytest.mark.filterwarnings("ignore")  # torch's, about itself
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fresh_model_is_drawn_in_parts(name: str) -> None:
    whole = Llama(CONFIG).init_weights(torch.Generator().manual_seed(3)).state_dict()
    for rank in (0, 5):
        with pretended(rank) as world, Alive() as alive:
            model = empty_model(CONFIG)
            parts = cut(model, LAYOUTS[name], world)
            parts.fill(model.draw_weights(torch.Generator().manual_seed(3)))
            check(parts, whole, alive.peak)


@pytest.mark.filterwarnings("ignore")  # torch's, about itself
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_model_on_disk_is_read_in_parts(name: str, tmp_path: Path) -> None:
    whole = Llama(CONFIG).init_weights(torch.Generator().manual_seed(3)).to(torch.bfloat16)
    save_hf(whole, CONFIG, tmp_path, shard_bytes=1e5, bos_id=0, eos_ids=[1], pad_id=2)
    state = {name: tensor.float() for name, tensor in whole.state_dict().items()}
    with pretended(5) as world, Alive() as alive:
        parts = cut(load_hf(tmp_path), LAYOUTS[name], world)
        check(parts, state, alive.peak)


def test_the_count_sees_a_whole_model() -> None:
    with Alive() as alive:
        Llama(CONFIG)
    assert alive.peak >= count_parameters(CONFIG)


@pytest.mark.filterwarnings("ignore")  # torch's, about itself
def test_a_checkpoint_becomes_files_tensor_by_tensor(tmp_path: Path) -> None:
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(3))
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        parts = cut(model, Layout(shard=1), World())
        options = Training.model_validate({"seq_len": 64, "batch_rows": 8})
        optimizer = make_optimizer(parts.module, options)
        checkpoints = parts.checkpoints(tmp_path, optimizer, {}, options, Log(tmp_path / "log", "test", quiet=True))
        checkpoints.save(1)
        checkpoints.wait()
    finally:
        dist.destroy_process_group()
    with Alive() as alive:
        read = load_parts(tmp_path / "step-000000001", tmp_path / "scratch")
        save_hf(read, CONFIG, tmp_path / "hf", shard_bytes=4 * LARGEST, bos_id=0, eos_ids=[1], pad_id=2)
        save_meta(read, tmp_path / "meta")
    assert 0 < alive.peak < 3 * LARGEST
    for again in (load_hf(tmp_path / "hf"), load_meta(tmp_path / "meta")):
        assert all(torch.equal(tensor, whole[name]) for name, tensor in again.state_dict().items())
