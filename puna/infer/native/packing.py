"""Weights in the order in which kernels.h reads them, in one piece of memory."""

import ctypes
import mmap
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.infer.native import library as lib
from puna.model.int8 import Int8Linear
from puna.model.llama import Llama

KINDS = {torch.float32: lib.F32, torch.bfloat16: lib.BF16}
PER_STEP = {lib.F32: 1, lib.BF16: 2, lib.INT8: 4, lib.INT8_WEIGHTS: 4}
"""Inputs in the 4 bytes that a step holds of each output."""
PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Matrices of a layer that are multiplied with the same activations, in the order of a step."""


class Weight(NamedTuple):
    kind: int
    values: Tensor
    """[outputs, inputs]"""
    scale: Tensor
    """[outputs] for int8, else empty"""


class Packed(NamedTuple):
    """What `matrices` points to lives as long as the tensors do."""

    matrices: ctypes.Array
    words: Tensor
    scales: list[Tensor]


def products(model: Llama) -> list[list[Weight]] | None:
    """The weights of each product of a step, None where the library has no such product: matrices that are neither
    fp32, bf16 nor int8, or of several kinds in one product."""
    names = [[f"layers.{i}.{name}" for name in group] for i in range(model.config.layers) for group in PRODUCTS]
    groups = []
    for group in [*names, ["lm_head"]]:
        weights = [weight for name in group if (weight := _weight(model.get_submodule(name)))]
        if len(weights) < len(group) or len({weight.kind for weight in weights}) > 1:
            return None
        groups.append(weights)
    return groups


def _weight(module: nn.Module) -> Weight | None:
    if isinstance(module, Int8Linear):
        return Weight(lib.INT8 if module.activations else lib.INT8_WEIGHTS, module.weight, module.scale)
    if type(module) is nn.Linear and module.bias is None and module.weight.dtype in KINDS:
        return Weight(KINDS[module.weight.dtype], module.weight.detach(), torch.empty(0))
    return None


def pack(groups: Sequence[Sequence[Weight]]) -> Packed:
    shapes = [_shape(group) for group in groups]
    words = _huge_pages(4 * sum(panels * steps * 32 for panels, steps in shapes))
    matrices, scales, at = (lib.Matrix * len(groups))(), [], 0
    for i, (group, (panels, steps)) in enumerate(zip(groups, shapes)):
        kind = group[0].kind
        size = 4 * panels * steps * 32
        weight = _pad(_fuse([weight.values for weight in group]), steps * PER_STEP[kind])
        if kind == lib.INT8:
            weight = weight.view(torch.uint8) ^ 128  # plus 128: VNNI multiplies unsigned with signed
        order = weight.view(panels, 32, steps, -1).transpose(1, 2)
        words[at : at + size].view(weight.dtype).view(order.shape).copy_(order)
        has_scale = kind in (lib.INT8, lib.INT8_WEIGHTS)
        scales.append(_fuse([weight.scale[:, None] for weight in group]).flatten() if has_scale else torch.empty(0))
        matrices[i] = lib.Matrix(words[at:].data_ptr(), scales[-1].data_ptr(), steps, panels, kind)
        at += size
    return Packed(matrices, words, scales)


def _shape(group: Sequence[Weight]) -> tuple[int, int]:
    """Panels of 32 outputs, and steps of 4 bytes, of the group's packed matrix."""
    outputs = [weight.values.shape[0] for weight in group]
    rounded = 2 * round_up(outputs[0]) if len(group) == 2 else round_up(sum(outputs))
    return rounded // 32, round_up(group[0].values.shape[1]) // PER_STEP[group[0].kind]


def _fuse(matrices: list[Tensor]) -> Tensor:
    """Matrices [outputs, n] above each other, rounded up to panels; two of them (gate and up) by turns of a panel, so
    that a thread has both of an output at hand."""
    if len(matrices) != 2:
        return _pad(torch.cat(matrices), matrices[0].shape[1])
    panels = [_pad(matrix, matrix.shape[1]).unflatten(0, (-1, 32)) for matrix in matrices]
    return torch.stack(panels, dim=1).flatten(0, 2)


def _pad(matrix: Tensor, inputs: int) -> Tensor:
    outputs = round_up(matrix.shape[0])
    return F.pad(matrix, (0, inputs - matrix.shape[1], 0, outputs - matrix.shape[0])).contiguous()


def round_up(n: int) -> int:
    return -(-n // 32) * 32


def _huge_pages(size: int) -> Tensor:
    """Memory in pages of 2 MB where the kernel gives them: with 4 KB pages, streaming weights takes a tenth longer."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory would get none
    buffer.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(buffer, dtype=torch.uint8)
