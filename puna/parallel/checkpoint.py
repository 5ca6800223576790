"""Checkpoints of a model in parts: torch's distributed form (DCP), which any other layout can read.

    step-000000120/__0_0.distcp, ...         what each process held, with a digest beside each file
                   .metadata, state.json     where everything is; the step, the model's shape, the files

Tensors are copied to memory while training waits and written while it goes on, into a folder aside that is renamed
when it is whole.
"""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from puna.errors import PunaError
from puna.model.llama import Llama, LlamaConfig, RopeScaling
from puna.model.weights import empty_model, mapped_copy, with_state
from puna.parallel.place import local, where
from puna.recipe import Training
from puna.train.checkpoint import Checkpoints, damage, found, prune, remove, set_step

STATE = "state.json"


class PartsCheckpoints(Checkpoints):
    """The checkpoints of a model of which each process holds a part: all processes make every call together."""

    def __init__(self, *arguments: Any, config: LlamaConfig) -> None:
        super().__init__(*arguments)
        self.config = config
        self.group = dist.new_group(backend="gloo")  # saving must not wait for training, nor training for it
        self.pending: Future[Any] | None = None
        # The memory for the copy is kept, pinned where a GPU copies into it: to get it anew takes longer than to copy.
        self.stager = DefaultStager(StagingOptions(torch.cuda.is_available(), False, False, False))

    def save(self, step: int) -> None:
        """Begin to write folder/step-N; it is there, whole, when a later `save` or `wait` returns."""
        self.wait()
        self.folder.mkdir(parents=True, exist_ok=True)
        writer = _Writer(self.folder / f"step-{step:09d}", step, self.config, self.options)
        state = {name: tensor.detach() for name, tensor in self.state().items()}
        group: Any = self.group
        future = dcp.async_save(state, storage_writer=writer, process_group=group, async_stager=self.stager)
        assert isinstance(future, Future)
        self.pending = future

    def wait(self) -> None:
        if self.pending:
            self.pending.result()
            self.pending = None

    def load(self, before: int | None = None) -> int:
        self.wait()
        there = [found(self.folder, before)]
        dist.broadcast_object_list(there, src=0)
        for step, path in there[0]:
            if problem := self._damage(path):
                if self.rank == 0:
                    self.log.message(f"checkpoint {path.name} is damaged ({problem}); using the one before it")
                continue
            self.restore(path, step)
            return step
        return 0

    def _damage(self, path: Path) -> str | None:
        """As `damage`, each process looking at other files of it."""
        rank, size = dist.get_rank(), dist.get_world_size()
        mine = damage_of_parts(path, rank, size) if path.is_dir() else damage(path) if rank == 0 else None
        problems: list[str | None] = [None] * size
        dist.all_gather_object(problems, mine)
        return next((problem for problem in problems if problem), None)

    def restore(self, path: Path, step: int) -> None:
        state = {name: tensor.detach() for name, tensor in self.state().items()}
        if path.is_dir():
            read_parts(path, state)
        else:
            with safe_open(path, "pt") as file:
                for name, tensor in state.items():
                    local(tensor).copy_(file.get_slice(name)[where(tensor)])
        set_step(self.optimizer, step)


class _Writer(FileSystemWriter):
    """Writes into a folder aside, a digest beside every file; the coordinator renames it when all is there."""

    def __init__(self, path: Path, step: int, config: LlamaConfig, options: Training) -> None:
        super().__init__(path.with_name(f"{path.name}.aside"))
        self.final, self.step, self.config, self.options = path, step, config, options

    def write_data(self, plan: Any, planner: Any) -> Any:
        future = super().write_data(plan, planner)
        for name in {result.storage_data.relative_path for result in future.value()}:
            file = Path(self.path) / name
            digest_file(file).write_text(digest_of(file))
        return future

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        super().finish(metadata, results)
        aside = Path(self.path)
        files = sorted({result.storage_data.relative_path for part in results for result in part})
        config = dataclasses.asdict(self.config)
        state = {"step": self.step, "config": config, "files": files, "metadata": digest_of(aside / ".metadata")}
        with (aside / STATE).open("w") as handle:
            handle.write(json.dumps(state, indent=1))
            handle.flush()
            os.fsync(handle.fileno())
        files += [digest_file(aside / file).name for file in files]
        known = {STATE, ".metadata", *files}
        for path in [path for path in aside.iterdir() if path.name not in known]:
            path.unlink()  # left by a process that was killed while it wrote here
        if self.final.exists():
            remove(self.final)
        aside.rename(self.final)
        prune(self.final.parent, self.options)


class _Reader(FileSystemReader):
    """Reads the metadata once: that of a large model is large."""

    _known: Metadata | None = None

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        self._known = self._known or super().read_metadata(*arguments, **options)
        return self._known


def digest_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.xxh3")


def digest_of(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as handle:
        while block := handle.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def damage_of_parts(path: Path, rank: int = 0, size: int = 1) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files, None if nothing is."""
    try:
        state = json.loads((path / STATE).read_text())
        if digest_of(path / ".metadata") != state["metadata"]:
            return ".metadata's digest differs"
        for name in state["files"][rank::size]:
            if digest_of(path / name) != digest_file(path / name).read_text():
                return f"the digest of {name} differs"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None


def read_parts(path: Path, state: Mapping[str, Tensor], alone: bool = False) -> None:
    """Fill the tensors, plain ones or DTensors, in place; `alone` means that no other process takes part."""
    _load(dict(state), _Reader(path), alone)


def _load(state: dict[str, Any], reader: _Reader, alone: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked
        dcp.load(state, storage_reader=reader, no_dist=alone)


def weights_of_parts(path: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, whole fp32 tensor) of every weight, one by one; no process group is needed."""
    reader = _Reader(path)
    for key, kind in sorted(reader.read_metadata().state_dict_metadata.items()):
        if key.startswith("model."):
            assert isinstance(kind, TensorStorageMetadata)
            whole = torch.empty(kind.size, dtype=kind.properties.dtype)
            _load({key: whole}, reader, alone=True)
            yield key.removeprefix("model."), whole


def check_parts(path: Path) -> None:
    """PunaError where a folder is no checkpoint of ours, or a damaged one."""
    if not (path / STATE).is_file():
        raise PunaError(f"{path}: no checkpoint of puna, which has a {STATE}; name a folder step-N")
    if problem := damage_of_parts(path):
        raise PunaError(f"{path}: a damaged checkpoint ({problem}); use the one before it")


def config_of_parts(path: Path) -> LlamaConfig:
    config = json.loads((path / STATE).read_text())["config"]
    scaling = config.pop("rope_scaling")
    return LlamaConfig(**config, rope_scaling=scaling and RopeScaling(**scaling))


def mapped_weights(path: Path, scratch: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights of a checkpoint in files in `scratch` that are mapped into memory: whatever their size, no more is
    held than what is in use."""
    scratch.mkdir(parents=True, exist_ok=True)
    return {name: mapped_copy(tensor.to(dtype), scratch / name) for name, tensor in weights_of_parts(path)}


def load_parts(path: Path, scratch: Path, dtype: torch.dtype = torch.float32) -> Llama:
    """The model of a checkpoint, with its `mapped_weights`."""
    return with_state(empty_model(config_of_parts(path)), mapped_weights(path, scratch, dtype), "cpu")
