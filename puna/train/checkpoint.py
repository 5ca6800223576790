"""Checkpoints: what is in one, and the form of a model that each process holds whole.

That form is one safetensors file, written aside and renamed, checked by digest when read: for a model of one machine it
is simpler and quicker than torch's distributed form, which a model in parts uses (puna/parallel/checkpoint.py). Either
trainee reads both, so a run goes on after a change of layout.

A checkpoint holds the weights, both AdamW moments, the step and what the loop remembers of earlier steps; random
numbers and the data position are functions of the step (see batches.py), and torch's own generator is saved for code
that draws from it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.log import Log
from puna.recipe import Training

MOMENTS = ("exp_avg", "exp_avg_sq")


def state_of(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name. They are the live ones: what is copied into them is restored."""
    state = {f"memory.{name}": tensor for name, tensor in memory.items()}
    for name, parameter in parameters.items():
        moments = optimizer.state[parameter]
        if not moments:  # AdamW makes its state at the first step
            moments["step"] = torch.tensor(0.0, device=parameter.device)
            moments |= {key: torch.zeros_like(parameter) for key in MOMENTS}
        state[f"model.{name}"] = parameter
        state |= {f"{key}.{name}": moments[key] for key in MOMENTS}
    return state


class Checkpoints:
    """The checkpoints of a model that this process holds whole; the first process writes, all read."""

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        memory: Mapping[str, Tensor],
        options: Training,
        log: Log,
        rank: int,
    ) -> None:
        self.folder, self.parameters, self.optimizer, self.memory = folder, parameters, optimizer, memory
        self.options, self.log, self.rank = options, log, rank
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Get the memory for the copy beside the first steps: that takes longer than to copy, and `save` would wait."""
        if self.rank == 0:
            self._written = self._writer.submit(self._get_memory)

    def _get_memory(self) -> None:
        for name, parameter in self.parameters.items():
            for kind in ("model", *MOMENTS):
                self._copies[f"{kind}.{name}"] = torch.empty(parameter.shape, dtype=parameter.dtype).fill_(0)

    def state(self) -> dict[str, Tensor]:
        return state_of(self.parameters, self.optimizer, self.memory)

    def save(self, step: int) -> None:
        """Begin to write folder/step-N.safetensors; it is there, whole, when a later `save` or `wait` returns."""
        if self.rank:
            return
        self.wait()
        for name, tensor in (self.state() | {"random": torch.get_rng_state()}).items():
            if name not in self._copies:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            self._copies[name].copy_(tensor.detach())
        self._written = self._writer.submit(self._write, step, self._copies)

    def _write(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write it, whole or not at all, and drop what need not be kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.safetensors"
        aside = path.with_suffix(".aside")
        save_file(tensors, aside, {"step": str(step), "digest": _digest(tensors)})
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        aside.replace(path)
        prune(self.folder, self.options)

    def load(self, before: int | None = None) -> int:
        """Restore the newest whole checkpoint, of a step up to `before`, in place; its step, 0 if there is none.

        A damaged one is reported and the one before it is used.
        """
        self.wait()
        for step, path in found(self.folder, before):
            if problem := damage(path):
                self.log.message(f"checkpoint {path.name} is damaged ({problem}); using the one before it")
                continue
            self.restore(path, step)
            return step
        return 0

    def restore(self, path: Path, step: int) -> None:
        state = self.state()
        if path.is_dir():
            from puna.parallel.checkpoint import read_parts

            read_parts(path, {name: tensor.detach() for name, tensor in state.items()}, alone=True)
        else:
            with safe_open(path, "pt") as file:
                for name, tensor in state.items():
                    tensor.detach().copy_(file.get_tensor(name))
                torch.set_rng_state(file.get_tensor("random"))
        set_step(self.optimizer, step)

    def wait(self) -> None:
        """Return when the last checkpoint is on disk; raises what went wrong with it."""
        if self._written:
            written, self._written = self._written, None
            written.result()


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    for moments in optimizer.state.values():
        moments["step"].fill_(float(step))


def found(folder: Path, before: int | None = None) -> list[tuple[int, Path]]:
    """The checkpoints in a folder, of both forms, the newest first, with their steps."""
    paths = [path for path in folder.glob("step-*") if path.suffix in ("", ".safetensors")]
    steps = sorted(((int(path.stem.removeprefix("step-")), path) for path in paths), reverse=True)
    return [(step, path) for step, path in steps if before is None or step <= before]


def prune(folder: Path, options: Training) -> None:
    """Drop all but the newest `keep_checkpoints` and those of every `keep_every` steps."""
    for step, path in found(folder)[options.keep_checkpoints :]:
        if not (options.keep_every and step % options.keep_every == 0):
            remove(path)


def remove(path: Path) -> None:
    """At once, as far as a reader can tell."""
    gone = path.with_name(f"old-{path.name}.aside")
    path.rename(gone)
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    if path.is_dir():
        from puna.parallel.checkpoint import damage_of_parts

        return damage_of_parts(path)
    try:
        with safe_open(path, "pt") as file:
            digest = file.metadata()["digest"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        return str(error)
    return None if digest == _digest(tensors) else "its digest differs"


def weights_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint of either form, (name, fp32 tensor), one by one: no two are held at a time."""
    if path.is_dir():
        from puna.parallel.checkpoint import weights_of_parts

        yield from weights_of_parts(path)
        return
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            if name.startswith("model."):
                yield name.removeprefix("model."), file.get_tensor(name)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape)]).encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
