"""Attention on a GPU: FlexAttention, which is given the documents and makes no mask of S x S.

At 128K tokens a boolean mask of a row would take 16 GiB; FlexAttention's says for blocks of 128 x 128 whether there is
anything to compute in them, and looks at single pairs only in blocks that are partly masked.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from puna.model.llama import Attention, sees
from puna.parallel.context import View


class BlockView(View):
    """A View whose mask is for FlexAttention."""

    def mask(self, documents: Tensor) -> BlockMask:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys = self.queries(documents), self.keys(documents)

        def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            q, k = queries[query], keys[key]
            return sees(documents[row, q], documents[row, k]) & (q >= k)

        make = _compiled(create_block_mask) if documents.is_cuda else create_block_mask
        return make(attends, len(documents), None, len(queries), len(keys), device=documents.device)


def apply_flex(model: nn.Module) -> None:
    """Let every layer, in place, attend through FlexAttention, for masks of a BlockView."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.__dict__["attend"] = flex_attend  # hides the method, on this object only


def flex_attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """As Attention.attend, for a BlockMask."""
    attend = _compiled(flex_attention) if q.is_cuda else flex_attention
    return attend(q, k, v, block_mask=mask, enable_gqa=True)


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=False)
