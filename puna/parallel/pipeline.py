"""Pipeline parallelism (section 3.3.2): each rank holds some consecutive layers, or several such parts (interleaved).

The embedding and the output count as a layer each in the balance, as in the paper, whose first and last stage have a
layer fewer. torch's schedules run the parts; a stage sends activations forward and their gradients back.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from puna.model.llama import Llama
from puna.parallel.context import View
from puna.recipe.layout import Layout

SCHEDULES = {
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero-bubble": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
}
V_SHAPED = ("zbv",)
"""Schedules where the first rank holds the first and the last part, not parts in turn."""


class Part(nn.Module):
    """What a stage holds of a Llama; parameters keep the names that they have in the whole model."""

    def __init__(self, model: Llama, layers: range, first: bool, last: bool, view: View) -> None:
        super().__init__()
        self.view = view
        self.rope = model.rope
        self.embed_tokens = model.embed_tokens if first else None
        self.layers = nn.ModuleDict({str(i): model.layers[i] for i in layers})
        self.norm = model.norm if last else None
        self.lm_head = model.lm_head if last else None  # used by the loss

    def forward(self, x: Tensor, documents: Tensor) -> Tensor:
        """Tokens [B, S / cp] or activations [B, S / cp / tp, dim], and the documents of the whole rows [B, S] ->
        activations, or the final norm's output."""
        cos, sin = self.rope(self.view.positions(documents))
        mask = self.view.mask(documents)
        if self.embed_tokens is not None:
            x = self.embed_tokens(x)
            if isinstance(x, AsyncCollectiveTensor):
                x = x * 1.0  # a compiled layer would lose the gradient of what is still on its way (torch 2.13)
        for layer in self.layers.values():
            x = layer(x, cos, sin, mask, None)
        return self.norm(x) if self.norm is not None else x


def split(layers: int, stages: int) -> list[range]:
    """The layers of each stage, balanced with embedding and output counting as one each."""
    slots = layers + 2
    edges = [stage * slots // stages for stage in range(stages + 1)]
    return [range(max(0, a - 1), min(layers, b - 1)) for a, b in pairwise(edges)]


def stages_of(rank: int, layout: Layout) -> list[int]:
    """The numbers of a rank's stages."""
    if layout.schedule in V_SHAPED:
        return [rank, 2 * layout.pp - 1 - rank]
    return [rank + turn * layout.pp for turn in range(layout.stages)]


def micro_batches_of(layout: Layout, wanted: int) -> int:
    """The micro-batches that the schedule goes through to do `wanted` of them: it has no use for fewer than stages, and
    interleaved ones go in equal rounds of about pp."""
    if layout.pp == 1:
        return wanted
    if layout.schedule in ("interleaved", "zero-bubble") and wanted > layout.pp:
        return -(-wanted // layout.pp) * layout.pp
    return max(wanted, layout.pp * layout.stages)


class Pipeline:
    """The parts of a model on this rank of the `pp` axis, and the schedules that train them."""

    def __init__(self, model: Llama, mesh: DeviceMesh, layout: Layout, view: View) -> None:
        self.kind = get_schedule_class(SCHEDULES[layout.schedule])
        self.mesh = mesh
        self.stages = layout.pp * layout.stages
        self.numbers = stages_of(mesh.get_local_rank(), layout)
        ranges = split(len(model.layers), self.stages)
        self.parts = [Part(model, ranges[i], i == 0, i == self.stages - 1, view) for i in self.numbers]
        self._schedules: dict[tuple[int, ...], PipelineScheduleMulti] = {}

    def step(
        self,
        tokens: Sequence[Tensor],
        documents: Sequence[Tensor],
        loss: Callable[[Tensor, int], Tensor],
    ) -> Tensor:
        """All micro-batches of a step forward and backward; loss(final hidden, number of the micro-batch) is what one
        adds to the step's loss. Returns the sum of those on this rank (zero but on the last)."""
        self._loss = loss
        first, last = 0 in self.numbers, self.stages - 1 in self.numbers
        losses: list[Tensor] = []
        inputs = (torch.cat(list(tokens)),) if first else ()
        ends = {"target": torch.arange(len(tokens)), "losses": losses} if last else {}
        schedule = self._schedule(tokens[0].device, len(tokens), *tokens[0].shape)
        schedule.step(*inputs, **ends, documents=torch.cat(list(documents)), return_outputs=False)  # pyright: ignore
        return torch.stack([value.detach() for value in losses]).sum() if losses else tokens[0].new_zeros(()).float()

    def _schedule(self, device: torch.device, *shape: int) -> PipelineScheduleMulti:
        """The schedule for so many micro-batches of so many rows of so many tokens: buffers are sized by them."""
        if shape not in self._schedules:
            group = self.mesh.get_group()
            stages = [PipelineStage(p, n, self.stages, device, group=group) for p, n in zip(self.parts, self.numbers)]
            multi = issubclass(self.kind, PipelineScheduleMulti)
            self._schedules[shape] = self.kind(
                stages if multi else stages[0],  # pyright: ignore
                n_microbatches=shape[0],
                loss_fn=lambda hidden, number: self._loss(hidden, int(number)),
                scale_grads=False,
            )  # pyright: ignore
        return self._schedules[shape]
