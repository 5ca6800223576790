"""Pipeline parallelism (section 3.3.2): each rank holds some consecutive layers, or several such parts (interleaved).

The embedding and the output count as a layer each in the balance, as in the paper, whose first and last stage have a
layer fewer. torch's schedules run the parts; a stage sends activations forward and their gradients back.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle, get_schedule_class

from puna.errors import PunaError
from puna.model.llama import Llama

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

    def __init__(self, model: Llama, layers: range, first: bool, last: bool) -> None:
        super().__init__()
        self.rope = model.rope
        self.embed_tokens = model.embed_tokens if first else None
        self.layers = nn.ModuleDict({str(i): model.layers[i] for i in layers})
        self.norm = model.norm if last else None
        self.lm_head = model.lm_head if last else None  # used by the loss

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, S] or activations [B, S, dim] -> activations, or the final norm's output."""
        cos, sin = self.rope(positions)
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


def stages_of(rank: int, ranks: int, per_rank: int, schedule: str) -> list[int]:
    """The numbers of a rank's stages."""
    if schedule in V_SHAPED:
        return [rank, 2 * ranks - 1 - rank]
    return [rank + turn * ranks for turn in range(per_rank)]


class Pipeline:
    """The parts of a model on this rank of the `pp` axis, and the schedule that trains them."""

    def __init__(self, model: Llama, mesh: DeviceMesh, schedule: str, per_rank: int, micro_batches: int) -> None:
        if schedule not in SCHEDULES:
            raise PunaError(f"pipeline schedule {schedule!r} is not known; use one of {', '.join(SCHEDULES)}")
        self.kind = get_schedule_class(SCHEDULES[schedule])
        if issubclass(self.kind, PipelineScheduleSingle):
            per_rank = 1
        self.mesh, self.micro_batches = mesh, micro_batches
        self.stages = mesh.size() * per_rank
        self.numbers = stages_of(mesh.get_local_rank(), mesh.size(), per_rank, schedule)
        ranges = split(len(model.layers), self.stages)
        self.parts = [Part(model, ranges[i], i == 0, i == self.stages - 1) for i in self.numbers]

    @property
    def first(self) -> bool:
        return 0 in self.numbers

    @property
    def last(self) -> bool:
        return self.stages - 1 in self.numbers

    def make_schedule(self, device: torch.device, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """To be called when everything else has been applied to the parts. loss(final hidden, labels) is what a
        micro-batch adds to the step's loss."""
        group = self.mesh.get_group()
        stages = [PipelineStage(p, n, self.stages, device, group=group) for p, n in zip(self.parts, self.numbers)]
        multi = issubclass(self.kind, PipelineScheduleMulti)
        self.schedule = self.kind(
            stages if multi else stages[0],  # pyright: ignore
            n_microbatches=self.micro_batches,
            loss_fn=loss,
            scale_grads=False,
        )

    def step(self, tokens: Tensor, labels: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """All micro-batches of a step forward and backward; this rank's part of the loss (zero but on the last)."""
        losses: list[Tensor] = []
        inputs = (tokens,) if self.first else ()
        ends = {"target": labels, "losses": losses} if self.last else {}
        self.schedule.step(*inputs, **ends, positions=positions, mask=mask)  # pyright: ignore
        return (
            torch.stack([loss.detach() for loss in losses]).sum() if losses else torch.zeros((), device=tokens.device)
        )
