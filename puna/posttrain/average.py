"""Averaging models that differ in their data or hyper-parameters, after each stage (section 4.1.5)."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.errors import PunaError


def average(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of the weights of Hugging Face directories, taken in fp32 and kept in the first one's dtype.

    All other files (configuration, tokenizer) are copied from the first; adapters, in a folder, are not. PunaError when
    the models are not of one shape.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = sorted(path.name for path in folders[0].glob("*.safetensors"))
    if not weights:
        raise PunaError(f"{folders[0]} has no safetensors to average; name the folders of models")
    for name in weights:
        tensors, metadata = mean_of([folder / name for folder in folders])
        save_file(tensors, out / name, metadata)
    for path in folders[0].iterdir():
        if path.is_file() and path.name not in (*weights, "manifest.json"):
            shutil.copyfile(path, out / path.name)


def mean_of(files: Sequence[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor's mean over the files, and the first file's metadata."""
    for file in files:
        if not file.is_file():
            raise PunaError(f"{file} is missing: the models to average have their weights in files of the same names")
    with ExitStack() as opened:
        first, *others = (opened.enter_context(safe_open(file, "pt")) for file in files)
        expected = shapes_of(first)
        for file, other in zip(files[1:], others):
            if odd := sorted(name for name, _ in expected.items() ^ shapes_of(other).items()):
                raise PunaError(f"{file} does not fit {files[0]}: they differ in {odd[0]}; average models of one shape")
        means = {}
        for name in expected:
            tensors = [each.get_tensor(name) for each in (first, *others)]
            means[name] = torch.stack([tensor.float() for tensor in tensors]).mean(0).to(tensors[0].dtype)
        return means, first.metadata()


def shapes_of(file: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
