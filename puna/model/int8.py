"""Matrices in int8, for CPUs: a quarter of fp32's memory to read for each token, half of bf16's.

Each output of a matrix has a scale of its own, its largest weight / 127, and weights are rounded to the nearest. W8A8
quantises the activations in the same way, a scale for each token taken from its own values, and adds up products of
integers exactly, as in LLM.int8() (arXiv 2208.07339) without its separate outliers; weight-only keeps activations as
they are, which is more accurate and slower. Embedding and norms stay. The Llama 3 paper quantises to FP8 only
(section 6.2): int8 is ours.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.errors import PunaError
from puna.model.llama import Llama

Precision = Literal["int8", "int8_weights"]
"""W8A8 and weight-only."""


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [outputs, inputs] -> int8 of the same shape and fp32 scales [outputs]: weight = int8 * scale, within
    half a scale."""
    weight = weight.float()
    scale = weight.abs().amax(-1) / 127
    return (weight / scale.clamp(min=1e-30)[..., None]).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """nn.Linear without bias in int8; `activations` says whether they are quantised too (W8A8)."""

    weight: Tensor  # [outputs, inputs], int8
    scale: Tensor  # [outputs], fp32

    def __init__(self, linear: nn.Linear, activations: bool) -> None:
        super().__init__()
        weight, scale = quantize(linear.weight.detach())
        self.in_features, self.out_features, self.activations = linear.in_features, linear.out_features, activations
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        if not self.activations:
            return (F.linear(x, self.weight.to(x.dtype)) * self.scale).type_as(x)
        rows, row_scale = quantize(x.flatten(0, -2))
        sums = torch._int_mm(rows, self.weight.T)  # int32, exact
        return (sums * self.scale * row_scale[:, None]).type_as(x).view(*x.shape[:-1], -1)


def to_int8(model: Llama, precision: Precision = "int8") -> Llama:
    """Replace every matrix of the model but the embedding, in place."""
    if precision not in get_args(Precision):
        raise PunaError(f"precision = {precision!r}: must be one of {', '.join(get_args(Precision))}")
    for module in [m for m in model.modules() if not isinstance(m, Int8Linear)]:
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child, activations=precision == "int8"))
    return model
