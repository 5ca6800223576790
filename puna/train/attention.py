"""Attention on a CPU, put in place of the model's while it trains.

PyTorch's fused kernel for CPUs spends most of its time outside the matrix products when rows are a few hundred tokens
and heads small. In bf16, plain operations, which torch.compile fuses, take about half the time when the keys after a
block of queries are left out; fp32 gains nothing from that. Without torch.compile the kernel gains by being given each
document alone: what the mask would throw away is not computed. benchmarks/README.md has the figures.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.model.llama import Llama

BLOCK = 128
"""Queries at once: they need no key after their own block."""
LONGEST_ROW = 1024
"""Memory and time to compile grow with the square and the number of blocks."""


def block_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What Attention.attend gives for q [B, heads, S, D], k and v [B, kv_heads, S, D] and a boolean mask [B, 1, S, S]
    that lets a token attend to itself and to nothing after it."""
    ends = [min(start + BLOCK, q.shape[2]) for start in range(0, q.shape[2], BLOCK)]
    blocks = [(slice(start, end), slice(end)) for start, end in zip([0, *ends], ends)]
    parts = [_attend(q[:, :, own], k[:, :, seen], v[:, :, seen], mask[:, :, own, seen]) for own, seen in blocks]
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    B, heads, S, D = q.shape
    kv_heads, K = k.shape[1:3]
    q = (q * D**-0.5).reshape(B, kv_heads, -1, D)  # the queries of a group of heads share keys: one product
    scores = (q @ k.transpose(2, 3)).view(B, kv_heads, -1, S, K).float()
    scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
    # Softmax divided after the product with v: gradients need no second sum over the keys. The shift cancels.
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp().to(v.dtype)
    sums = weights.float().sum(-1, keepdim=True)
    out = (weights.view(B, kv_heads, -1, K) @ v).view(B, kv_heads, -1, S, D) / sums
    return out.to(v.dtype).view(B, heads, S, D)


def document_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """As block_attention, for a mask of documents and their branches (model/llama.py). A branch is computed after a
    copy of what comes before it: the kernel is slow where it is not plainly causal."""
    B, heads, S, D = q.shape
    rows = mask[:, 0].flatten(0, 1)  # what each token sees; to count all of it would cost as much as the attention
    gaps = (~F.pad(mask[:, 0].diagonal(-1, 1, 2), (1, 0))).flatten().nonzero().flatten()  # after what it does not see
    seen = (rows[gaps].sum(-1) - 1).tolist()  # nothing by the first token of a document, the document by a branch's
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # [B * S, heads, D] each
    parts, first = [], 0
    for start, end, before in zip(gaps.tolist(), [*gaps.tolist()[1:], B * S], seen):
        first = first if before else start
        own = [torch.cat([x[first : first + before], x[start:end]]).transpose(0, 1)[None] for x in flat]
        found = F.scaled_dot_product_attention(own[0], own[1], own[2], is_causal=True, enable_gqa=True)
        parts.append(found[:, :, before:])
    return torch.cat(parts, dim=2).view(heads, B, S, D).transpose(0, 1)


@contextmanager
def attention_in(model: Llama, attend: Callable[..., Tensor] | None) -> Iterator[None]:
    """Let every layer attend by this function, if it is one, until the end of the block."""
    layers = [layer.get_submodule("self_attn") for layer in model.layers] if attend else []
    for attention in layers:
        attention.__dict__["attend"] = attend  # hides the method, on this object only
    try:
        yield
    finally:
        for attention in layers:
            del attention.__dict__["attend"]


def choose_attention(
    device: torch.device, dtype: torch.dtype, compiled: bool, seq_len: int
) -> Callable[..., Tensor] | None:
    """The quickest attention for training on rows of documents; None is the model's own."""
    if device.type != "cpu":
        return None
    if not compiled:
        return document_attention
    return block_attention if dtype == torch.bfloat16 and seq_len <= LONGEST_ROW else None
