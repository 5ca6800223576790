"""A Llama that each process holds whole, as the training loop sees it: the quickest way where it fits."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from puna.log import Log
from puna.machine import training_dtype
from puna.model.llama import Llama
from puna.recipe import Training
from puna.train.attention import attention_in, choose_attention
from puna.train.batches import Batch
from puna.train.checkpoint import Checkpoints
from puna.train.launch import World
from puna.train.losses import Loss


class Whole:
    """The model, with gradients that are views of one fp32 vector: its sum over processes and its norm are one call."""

    def __init__(self, model: Llama, loss: Loss, options: Training, world: World, compiled: bool) -> None:
        empty = model.embed_tokens.weight.is_meta
        model = model.to_empty(device=world.device) if empty else model.to(world.device, torch.float32)
        self.model, self.loss, self.world = model.train(), loss, world
        self.share = (world.rank, world.size)
        self._checkpoints: Checkpoints | None = None
        self.own: float | None = 0.0 if world.device.type == "cpu" else None  # a GPU works behind our back
        self.module: nn.Module = model
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        trained = list(self.parameters.values())
        self.gradient, self.sum_gradient = world.vector(sum(p.numel() for p in trained))
        for parameter, piece in zip(trained, self.gradient.split([p.numel() for p in trained])):
            parameter.grad = piece.view_as(parameter)
        self.dtype = training_dtype(options, world.device)
        self.hidden = torch.compile(model.hidden, dynamic=False) if compiled else model.hidden
        self.crop = not compiled  # every shape would be compiled anew
        self.attend = choose_attention(world.device, self.dtype, compiled, options.seq_len)

    @contextmanager
    def training(self) -> Iterator[None]:
        try:
            with attention_in(self.model, self.attend):
                yield
        finally:
            if self._checkpoints:
                self._checkpoints.wait()

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take the values of the whole model's weights, (name, value) one by one."""
        for name, value in weights:
            self.model.get_parameter(name).copy_(value)

    def sum_counts(self, counts: Tensor) -> Tensor:
        return self.world.sum(counts)

    def step(self, micro_batches: Sequence[Batch], rows: int, counts: Tensor) -> Tensor:
        """The gradients of this process's micro-batches of a step of so many rows, summed over processes into the
        parameters; returns what its part of the loss is, to be summed over all processes."""
        total = torch.zeros((), device=self.world.device)
        start = time.monotonic()
        self.gradient.zero_()
        for batch in micro_batches:
            total += self.backward(batch, counts)
        if self.own is not None:
            self.own += time.monotonic() - start
        self.sum_gradient()
        return total

    def backward(self, batch: Batch, counts: Tensor) -> Tensor:
        """One micro-batch forward and backward: gradients add up in the parameters; its part of the loss."""
        batch = batch.to_last_label() if self.crop else batch
        with torch.autocast(batch.tokens.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.hidden(batch.tokens, documents=batch.documents)
            value = self.loss(hidden, self.model.lm_head.weight, batch, counts)
        value.backward()
        return value.detach()

    def norm(self) -> Tensor:
        return self.gradient.norm()

    def scale(self, factor: Tensor) -> None:
        self.gradient.mul_(factor)

    def checkpoints(
        self, folder: Path, optimizer: torch.optim.Optimizer, memory: Mapping[str, Tensor], options: Training, log: Log
    ) -> Checkpoints:
        self._checkpoints = Checkpoints(folder, self.parameters, optimizer, memory, options, log, self.world.rank)
        self._checkpoints.prepare()
        return self._checkpoints

    def finish(self, checkpoints: Checkpoints, steps: int) -> None:
        """Nothing is owed: the model is whole."""
