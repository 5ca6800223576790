"""FP8 inference as in the paper (section 6.2): the feed-forward matrices of all layers but the first and the last.

A matrix has a scale for each row, fixed when it is quantised; an activation has one for each token, found as it comes
("row-wise", "dynamic"). The paper bounds the scales at 1200; in Meta's loader and in FBGEMM, which we follow, what is
bounded is the largest magnitude of a token, so that the rare tokens with huge activations (dates, in the paper) are
clipped and do not lose all their small values. Attention, embedding and output stay in the model's precision.

On disk this is Hugging Face's `fbgemm_fp8`, the form of Meta's own FP8 checkpoint, which vLLM and transformers load:
weights.py reads and writes it. On a GPU the products are in FP8; on a CPU the FP8 values are multiplied in fp32, which
gives the same result slowly.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.errors import PunaError
from puna.model.llama import Llama

BOUND = 1200.0
"""Largest magnitude of an activation (section 6.2)."""
FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of an e4m3 number
METHOD = "fbgemm_fp8"


def quantize_rows(x: Tensor, bound: float | None = None) -> tuple[Tensor, Tensor]:
    """x [rows, columns] -> (FP8 values of the same shape, scales [rows, 1] fp32), x being about values * scales."""
    largest = x.float().abs().amax(dim=1, keepdim=True).clamp(1e-12, bound)
    scales = largest / LARGEST
    return (x.float() / scales).clamp(-LARGEST, LARGEST).to(FP8), scales


class FP8Linear(nn.Module):
    """x [..., in_features] -> [..., out_features] in x's precision, without a bias."""

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        weight = torch.empty(out_features, in_features, dtype=FP8, device=device)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, 1, device=device), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear) -> Self:
        made = cls(linear.in_features, linear.out_features, linear.weight.device)
        values, scales = quantize_rows(linear.weight.detach())
        made.weight.data, made.weight_scale.data = values, scales
        return made

    def forward(self, x: Tensor) -> Tensor:
        values, scales = quantize_rows(x.flatten(0, -2), BOUND)
        if x.is_cuda:
            y = torch._scaled_mm(
                values, self.weight.t(), scales, self.weight_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
            )
        else:
            y = F.linear(values.float(), self.weight.float()) * scales * self.weight_scale.t()
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def quantize(model: Llama) -> Llama:
    """Put a model's feed-forward matrices into FP8, in place, those of the first and the last layer excepted."""
    last = model.config.layers - 1
    inner = [name for name in linears(model) if ".mlp." in name and 0 < int(name.split(".")[1]) < last]
    if not inner:
        raise PunaError(
            f"a model of {last + 1} layers has none for FP8, which keeps the first and the last as they are"
        )
    for name in inner:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, FP8Linear.of(linear))
    return model


# -- Hugging Face's form, for weights.py --


def linears(model: Llama) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def replace(model: Llama, names: Sequence[str]) -> Sequence[str]:
    """Make room for FP8 in the named matrices of a model that is still empty; returns the names."""
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, FP8Linear(linear.in_features, linear.out_features, linear.weight.device))
    return names


def description(kept: Sequence[str]) -> dict[str, Any]:
    """What config.json says under `quantization_config`; `kept` names the matrices that are not in FP8."""
    return {"quant_method": METHOD, "activation_scale_ub": BOUND, "modules_to_not_convert": list(kept)}


def check(quantization: dict[str, Any] | None) -> None:
    """Refuse what `description` would not say."""
    if quantization is None:
        return
    for key, value in {"quant_method": METHOD, "activation_scale_ub": BOUND}.items():
        if quantization.get(key) != value:
            raise PunaError(f"quantization_config: {key} = {quantization.get(key)!r}: only {value!r} can be loaded")


def converted(names: Sequence[str], quantization: dict[str, Any]) -> list[str]:
    """Those of the matrices that a `quantization_config` puts into FP8; it may keep whole modules, or all of a name."""
    kept = quantization.get("modules_to_not_convert") or ["lm_head"]
    return [
        name
        for name in names
        if not any(name == key or name.startswith(f"{key}.") or name.endswith(f".{key}") for key in kept)
    ]
