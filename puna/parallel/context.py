"""Context parallelism as the paper does it (section 3.3.2): queries stay, keys and values are gathered.

A row is cut into 2 x cp chunks, and rank i takes chunks i and 2 x cp - 1 - i, so that causal attention costs every
rank the same. All ranks read whole rows, hence each knows all documents and makes the mask that its queries need.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from puna.model.llama import Attention, document_mask, document_positions, sees


def chunk_places(seq_len: int, cp: int, rank: int) -> Tensor:
    """The places in a row, [seq_len / cp], that a rank holds."""
    chunks = torch.arange(seq_len).chunk(2 * cp)
    return torch.cat([chunks[rank], chunks[-1 - rank]])


@dataclass(frozen=True)
class View:
    """What of each row this rank of `cp` holds, and what its tokens may attend to.

    The numbers of the documents of whole rows, [B, seq_len], describe it all; the mask is made from them where it is
    needed, in the form that the attention there wants.
    """

    cp: int = 1
    rank: int = 0

    def cut(self, values: Tensor) -> Tensor:
        """[B, seq_len] -> the places that this rank holds, [B, seq_len / cp]."""
        return values[:, self.queries(values)].contiguous() if self.cp > 1 else values

    def queries(self, documents: Tensor) -> Tensor:
        return chunk_places(documents.shape[1], self.cp, self.rank).to(documents.device)

    def keys(self, documents: Tensor) -> Tensor:
        """Places of the keys in the order in which they are gathered."""
        places = [chunk_places(documents.shape[1], self.cp, rank) for rank in range(self.cp)]
        return torch.cat(places).to(documents.device)

    def positions(self, documents: Tensor) -> Tensor:
        return self.cut(document_positions(documents))

    def mask(self, documents: Tensor) -> Tensor:
        """[B, 1, seq_len / cp, seq_len]: model/llama.py's document_mask for this rank's queries."""
        if self.cp == 1:
            return document_mask(documents)
        queries, keys = self.queries(documents), self.keys(documents)
        seen = sees(documents[:, queries, None], documents[:, None, keys])
        return (seen & (queries[:, None] >= keys))[:, None]


def apply_context_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Let every layer's attention, in place, see the keys and values of all ranks of the `cp` axis."""
    group = mesh.get_group()
    for module in model.modules():
        if isinstance(module, Attention):
            module.__dict__["attend"] = _Gathered(module.attend, group)  # hides the method, on this object only


class _Gathered:
    def __init__(self, attend, group: dist.ProcessGroup) -> None:
        self.attend, self.group = attend, group

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        together = _GatherSequence.apply(torch.cat([k, v], -1), self.group)  # one message for both
        k, v = together.chunk(2, -1)
        return self.attend(q, k, v, mask)


class _GatherSequence(torch.autograd.Function):
    """[B, heads, S, D] of each rank -> [B, heads, cp * S, D]; gradients are added up in fp32."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup) -> Tensor:  # pyright: ignore
        ctx.group = group
        n = dist.get_world_size(group)
        out = x.new_empty(n, *x.shape)
        dist.all_gather_into_tensor(out.flatten(0, 1), x.contiguous(), group)
        return out.movedim(0, 2).flatten(2, 3)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore
        n = dist.get_world_size(ctx.group)
        parts = gradient.float().unflatten(2, (n, -1)).movedim(2, 0).contiguous()
        out = parts.new_empty(parts.shape[1:])
        dist.reduce_scatter_tensor(out, parts.flatten(0, 1), group=ctx.group)
        return out.to(gradient.dtype), None
