"""The mean of a model's weights over the last part of its training (Polyak; section 3.4.3)."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from puna.model.llama import Llama
from puna.train.launch import World


class WeightAverage:
    """Keeps the weights of a training's chosen steps on disk, and makes their mean.

    Call it after every step. What it has written stays when the training is killed, and a resumed one writes the same
    again, so the mean does not depend on where it was interrupted. The folder holds the weights `count` times, in fp32.
    """

    def __init__(self, model: Llama, world: World, folder: Path, steps: int, anneal_steps: int, count: int) -> None:
        self.model, self.world, self.folder = model, world, folder
        self.chosen = {steps - anneal_steps * later // count for later in range(count)}

    def __call__(self, step: int) -> None:
        if step in self.chosen and self.world.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            weights = {name: weight.detach().cpu().clone() for name, weight in self.model.named_parameters()}
            aside = self.folder / f"{step}.aside"
            save_file(weights, aside)
            aside.replace(aside.with_suffix(".safetensors"))

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the mean of the chosen weights."""
        self.world.sum(torch.zeros(1, device=self.world.device))  # all wait until rank 0 has written the last ones
        weights = dict(self.model.named_parameters())
        for number, step in enumerate(sorted(self.chosen)):
            for name, kept in load_file(self.folder / f"{step}.safetensors").items():
                kept = kept.to(weights[name].device)
                weights[name].copy_(kept if number == 0 else torch.lerp(weights[name], kept, 1 / (number + 1)))
