"""Tensor and sequence parallelism (section 3.3.2; Megatron's scheme, arXiv 2205.05198), as a table of names.

A column-parallel matrix holds a part of its outputs, a row-parallel one a part of its inputs, so the two of a pair need
no communication between them. Outside the pairs a rank holds a part of the sequence: norms and residuals are cut too.
"""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from puna.train.batches import IGNORE

SEQUENCE = Shard(1)


def gathered(inputs: int) -> PrepareModuleInput:
    """The whole sequence for a module whose first input is cut along it; the others are whole on every rank."""
    rest = (None,) * (inputs - 1)
    return PrepareModuleInput(input_layouts=(SEQUENCE, *rest), desired_input_layouts=(Replicate(), *rest))


def table() -> dict[str, ParallelStyle]:
    """Module name -> layout."""
    return {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=SEQUENCE),
        "layers.*.input_layernorm": SequenceParallel(),
        "layers.*.self_attn": gathered(5),
        "layers.*.self_attn.q_proj": ColwiseParallel(),
        "layers.*.self_attn.k_proj": ColwiseParallel(),
        "layers.*.self_attn.v_proj": ColwiseParallel(),
        "layers.*.self_attn.o_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "layers.*.post_attention_layernorm": SequenceParallel(),
        "layers.*.mlp": gathered(1),
        "layers.*.mlp.gate_proj": ColwiseParallel(),
        "layers.*.mlp.up_proj": ColwiseParallel(),
        "layers.*.mlp.down_proj": RowwiseParallel(output_layouts=SEQUENCE),
        "norm": SequenceParallel(),
        "lm_head": ColwiseParallel(input_layouts=SEQUENCE),
    }


def apply_tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model, or the part of it that a pipeline stage holds, over the `tp` axis, in place."""
    styles = {name: style for name, style in table().items() if _is_there(model, name)}
    head = getattr(model, "lm_head", None)
    if head is not None and head.out_features == 1:
        styles["lm_head"] = SequenceParallel()  # the one row of a reward model is whole on every rank, as norms are
    parallelize_module(model, mesh, styles)


def overlap_tensor_parallel(mesh: DeviceMesh) -> None:
    """Have the compiler cut the products beside a gathering or scattering over the `tp` axis into pieces (async TP)."""
    import torch._inductor.config as inductor
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    inductor._micro_pipeline_tp = True
    with warnings.catch_warnings():  # said not to be needed, but what the compiler looks at (torch 2.13)
        warnings.simplefilter("ignore", FutureWarning)
        enable_symm_mem_for_group(mesh.get_group().group_name)


def _is_there(model: nn.Module, name: str) -> bool:
    return getattr(model, name.partition(".")[0], None) is not None


class VocabularyParallel:
    """softmax_gradient of puna/train/losses.py where each rank holds a part of the vocabulary.

    The logits of a chunk exist only in parts: ranks exchange one maximum and one sum for each token.
    """

    def __init__(self, mesh: DeviceMesh, size: int) -> None:
        """`size`: the entries of a rank."""
        self.group, self.first, self.size = mesh.get_group(), mesh.get_local_rank() * size, size

    def __call__(self, logits: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """As softmax_gradient, for logits [n, vocab / tp]."""
        top = self._reduce(logits.amax(1), dist.ReduceOp.MAX)
        exponentials = (logits - top[:, None]).exp_()
        sums = self._reduce(exponentials.sum(1), dist.ReduceOp.SUM)
        mine = (labels >= self.first) & (labels < self.first + self.size)
        index = torch.where(mine, labels - self.first, 0)[:, None]
        picked = self._reduce(torch.where(mine, logits.gather(1, index)[:, 0], 0.0), dist.ReduceOp.SUM)
        kept = labels != IGNORE
        log_probs = torch.where(kept, picked - top - sums.log(), 0.0)
        gradient = exponentials.div_(sums[:, None])
        gradient.scatter_add_(1, index, -mine.float()[:, None])
        return log_probs, gradient.mul_((kept * scale)[:, None])

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        dist.all_reduce(tensor, operation, self.group)
        return tensor


def local_vocabulary(weight: Tensor) -> tuple[Tensor, VocabularyParallel | None]:
    """The part of the output matrix on this rank, and what makes a softmax over all parts if it is one of several."""
    if not isinstance(weight, DTensor):
        return weight, None
    part = weight.to_local()
    return part, VocabularyParallel(weight.device_mesh, len(part))


def whole_sequence(hidden: Tensor, head: Tensor) -> Tensor:
    """The final norm's output on every rank of `tp`. Its gradient is summed over them where each has a part of the
    output matrix, `head`; where each has all of it, it is whole as it comes."""
    if not isinstance(hidden, DTensor):
        return hidden
    assert isinstance(head, DTensor)
    gradient = Partial() if head.placements[0].is_shard() else Replicate()
    return hidden.redistribute(placements=[Replicate()]).to_local(grad_placements=[gradient])
