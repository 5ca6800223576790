"""Fully sharded data parallelism (FSDP2) over the dp and cp axes: parameters, gradients and moments in parts.

The paper does not reshard parameters after the forward pass (section 3.3.2), to save a second gathering; here that is
so where there is a pipeline, whose micro-batches would gather them again and again.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def apply_fsdp(model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, reshard: bool) -> None:
    """Shard each layer, and what is around them, over a mesh of one axis (FSDP) or two (hybrid: copies x shards).

    Parameters are gathered in `dtype`; gradients are added up over micro-batches and over processes in fp32, and not
    divided: every loss here is a sum over the step's own counts.
    """
    # Inputs are not cast: the angles of the rotary positions go into each layer, and bf16 would spoil them.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.get_submodule("layers").children():
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot divide while it sums, not even by 1
