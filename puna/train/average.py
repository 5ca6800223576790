"""The mean of a model's weights over the last part of its training (Polyak; section 3.4.3)."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from puna.errors import PunaError
from puna.parallel.place import local


class WeightAverage:
    """Keeps the weights of a training's chosen steps on disk; at the last step the module gets their mean.

    Every process calls it after every step, with the module that holds its part of the weights, and keeps a file of
    its own for each chosen step. Files outlive a killed training, and a resumed one writes the same again: the
    mean does not depend on where it was interrupted.
    """

    def __init__(self, folder: Path, rank: int, steps: int, anneal_steps: int, count: int) -> None:
        self.folder, self.rank, self.steps = folder, rank, steps
        self.chosen = sorted(steps - anneal_steps * later // count for later in range(count))

    def __call__(self, step: int, module: nn.Module) -> None:
        if step not in self.chosen:
            return
        weights = {name: local(weight).detach() for name, weight in module.named_parameters()}
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self._path(step).with_suffix(".aside")
        save_file({name: weight.cpu().contiguous() for name, weight in weights.items()}, aside)
        aside.replace(self._path(step))
        if step == self.steps:
            self._put_mean(weights)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}-of-rank-{self.rank}.safetensors"

    def _put_mean(self, weights: dict[str, torch.Tensor]) -> None:
        if absent := [step for step in self.chosen if not self._path(step).exists()]:
            raise PunaError(
                f"{self._path(absent[0])} is gone, and average needs the weights of that step; the number of processes "
                "must stay as it is during an anneal"
            )
        for number, step in enumerate(self.chosen):
            for name, kept in load_file(self._path(step)).items():
                kept = kept.to(weights[name].device)
                weights[name].copy_(kept if number == 0 else torch.lerp(weights[name], kept, 1 / (number + 1)))
