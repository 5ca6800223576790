"""Activation checkpointing: what the forward pass does not keep is computed again in the backward pass."""

from functools import partial
from typing import Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

Recompute = Literal["none", "selective", "full"]


def apply_recompute(model: nn.Module, what: Recompute) -> None:
    """Recompute nothing, the attention of each layer, or each layer whole; in place, parameters keep their names."""
    for layer in model.get_submodule("layers").children() if what != "none" else ():
        module = layer if what == "full" else layer.get_submodule("self_attn")
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
