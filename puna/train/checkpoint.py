"""Checkpoints: one safetensors file each, written aside and renamed, checked by digest when read.

The file holds the weights, both AdamW moments and the step; random numbers and the data position are functions of the
step (see batches.py), and torch's own generator is saved for code that draws from it.
"""

import json
import os
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from puna.log import Log


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> None:
    """Write folder/step-N.safetensors, whole or not at all, and drop all but the newest `keep`."""
    tensors = _tensors(model, optimizer) | {"random": torch.get_rng_state()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    aside = path.with_suffix(".aside")
    save_file(tensors, aside, {"step": str(step), "digest": _digest(tensors)})
    with aside.open("rb") as handle:
        os.fsync(handle.fileno())
    aside.replace(path)
    for old in _files(folder)[keep:]:
        old.unlink()


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, log: Log) -> int:
    """Restore the newest whole checkpoint in place and return its step, 0 if there is none.

    A damaged one is reported and the one before it is used.
    """
    for path in _files(folder):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            log.message(f"checkpoint {path.name} is damaged ({error}); using the one before it")
            continue
        if metadata["digest"] != _digest(tensors):
            log.message(f"checkpoint {path.name} is damaged (its digest differs); using the one before it")
            continue
        torch.set_rng_state(tensors.pop("random"))
        for group in optimizer.param_groups:
            for parameter in group["params"]:  # AdamW makes its state at the first step; it is needed now
                state = optimizer.state[parameter]
                state["step"] = torch.tensor(float(metadata["step"]), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = (
                    torch.zeros_like(parameter),
                    torch.zeros_like(parameter),
                )
        for name, tensor in _tensors(model, optimizer).items():
            tensor.detach().copy_(tensors[name])
        return int(metadata["step"])
    return 0


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter
        if state := optimizer.state.get(parameter):
            tensors |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(json.dumps([name, list(tensors[name].shape)]).encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
