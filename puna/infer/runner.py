"""Runs a Llama over a paged cache: prompts in chunks, outputs token by token.

The tokens of all requests in a step lie one after the other in a single row, so matrices are multiplied once for all
of them; only attention looks at each request's own blocks. It gathers a request's keys from its blocks into
one padded tensor for those rows that have as many queries each, and hands that to PyTorch's fused attention.

What a token gets must not depend on what shares its step. A row of a matrix product is added up in the same order
whatever the number of rows, as long as there are at least four (MKL has other kernels for one, two and three), and
the sum over keys is cut at places that depend on the number of keys only in a range that `padded` avoids; so in fp32
on a CPU results are the same to the bit. tests/infer holds this.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.infer.cache import BLOCK
from puna.infer.scheduler import Chunk
from puna.model.llama import Llama
from puna.train.attention import attention_in

ROWS = 4
"""Rows of every matrix product are filled up to a multiple of this."""
TILE = 256
"""Queries of a long chunk that attend together: they read no key after their own last."""


class Group(NamedTuple):
    """Rows with equally many queries each, at `start` in the step's tokens: attention takes them together."""

    start: int
    rows: int
    queries: int
    index: Tensor
    """[rows * kv_heads * keys]: where the keys lie in a layer's cache, seen as [blocks * BLOCK * kv_heads, D]."""
    mask: Tensor
    """[rows, 1, queries, keys], zero or minus infinity."""


class PagedAttention:
    """Stands in for the cache and for the attention of all layers during one step."""

    def __init__(self, cache: Tensor, slots: Tensor, groups: Sequence[Group]) -> None:
        self.cache, self.slots, self.groups = cache, slots, groups

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the step's k and v [1, kv_heads, T, D] to their slots; give back the whole layer's."""
        keys, values = (x.flatten(0, 1) for x in self.cache[layer])  # [blocks * BLOCK, kv_heads, D]
        keys.index_copy_(0, self.slots, k[0].transpose(0, 1))
        values.index_copy_(0, self.slots, v[0].transpose(0, 1))
        return keys, values

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """q [1, heads, T, D] -> the same shape."""
        q = q[0].transpose(0, 1)
        parts = [self._attend(group, q, keys, values) for group in self.groups]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)[None]

    def _attend(self, group: Group, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One group's part of q [T, heads, D] -> [rows * queries, heads, D]."""
        _, kv_heads, D = keys.shape
        q = q[group.start : group.start + group.rows * group.queries]
        k, v = (x.view(-1, D).index_select(0, group.index).view(group.rows, kv_heads, -1, D) for x in (keys, values))
        if group.queries == 1:  # the heads that share keys go as queries of one head
            q = q.view(group.rows, kv_heads, -1, D)
            return F.scaled_dot_product_attention(q, k, v, group.mask).view(group.rows, -1, D)
        q = q.view(group.rows, group.queries, -1, D).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, group.mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


class Runner:
    """A model and its cache [layers, 2, blocks, BLOCK, kv_heads, head_dim].

    Lengths and positions are in tokens; tables hold the blocks of each row in order, 0 after the last.
    """

    def __init__(self, model: Llama, cache: Tensor) -> None:
        self.model, self.cache = model, cache
        self.kv_heads = cache.shape[4]
        self.sharing = model.config.heads // model.config.kv_heads  # heads with the same keys

    def prefill(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Compute the chunks' tokens; the final hidden states [tokens, dim] of each."""
        tiles = [Chunk(c.request, at, min(at + TILE, c.end)) for c in chunks for at in range(c.start, c.end, TILE)]
        order = sorted(range(len(tiles)), key=lambda i: self._shape(tiles[i]))
        tokens, positions, slots, groups = [], [], [], []
        starts = [0] * len(tiles)
        for (queries, keys), members in groupby(order, key=lambda i: self._shape(tiles[i])):
            numbers = list(members)
            rows = [tiles[i] for i in numbers]
            place = np.array([tile.start for tile in rows])[:, None] + np.arange(queries)
            tables = table_of([tile.request.blocks for tile in rows], keys // BLOCK)
            start = sum(map(len, tokens))
            for row, i in enumerate(numbers):
                starts[i] = start + row * queries
            ends = np.array([tile.end for tile in rows])[:, None]
            tokens += [fill(tile.request.between(tile.start, tile.end), queries) for tile in rows]
            positions.append(place.ravel())
            slots.append(np.where(place < ends, slots_of(tables, np.minimum(place, ends - 1)), 0).ravel())
            groups.append(self._group(start, tables, place))
        hidden = self._forward(np.concatenate(tokens), np.concatenate(positions), np.concatenate(slots), groups)
        parts = iter(hidden[at : at + tile.end - tile.start] for at, tile in zip(starts, tiles))
        per_chunk = [[next(parts) for _ in range(c.start, c.end, TILE)] for c in chunks]
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in per_chunk]

    def decode(self, tokens: np.ndarray, lengths: np.ndarray, tables: np.ndarray) -> Tensor:
        """One token a row: tokens [rows], lengths [rows] with the token itself, tables [rows, blocks], int32 ->
        logits [rows, vocab] in fp32; the tokens' keys and values are written."""
        rows = len(tokens)
        filled = -(-rows // ROWS) * ROWS
        tokens, lengths = fill(tokens, filled), np.maximum(fill(lengths, filled), 1)
        tables = np.concatenate([tables, np.zeros((filled - rows, tables.shape[1]), tables.dtype)])
        place = lengths[:, None] - 1
        width = padded(tables.shape[1] * BLOCK, self.sharing) // BLOCK
        tables = np.pad(tables, ((0, 0), (0, width - tables.shape[1])))
        group = self._group(0, tables, place)
        hidden = self._forward(tokens, place[:, 0], slots_of(tables, place)[:, 0], [group])
        return self.model.lm_head(hidden).float()[:rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, dim] -> logits [n, vocab] in fp32."""
        short = -len(hidden) % ROWS
        return self.model.lm_head(F.pad(hidden, (0, 0, 0, short))).float()[: len(hidden)]

    def _shape(self, tile: Chunk) -> tuple[int, int]:
        """Queries and keys of a tile, padded."""
        queries = -(-(tile.end - tile.start) // ROWS) * ROWS
        return queries, padded(-(-tile.end // BLOCK) * BLOCK, queries)

    def _group(self, start: int, tables: np.ndarray, place: np.ndarray) -> Group:
        """For queries at positions `place` [rows, queries] of requests with tables [rows, blocks]."""
        device = self.cache.device
        blocks = torch.from_numpy(tables).to(device).long()
        tokens = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=device)).view(len(blocks), 1, -1)
        index = tokens * self.kv_heads + torch.arange(self.kv_heads, device=device)[:, None]
        unseen = torch.arange(tokens.shape[2], device=device) > torch.from_numpy(place).to(device)[..., None]
        mask = torch.zeros(unseen.shape, dtype=self.cache.dtype, device=device).masked_fill_(unseen, float("-inf"))
        return Group(start, *place.shape, index.flatten(), mask[:, None])

    def _forward(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, groups: list[Group]) -> Tensor:
        """Hidden states [T, dim] of tokens [T]."""
        device = self.cache.device
        row = [torch.from_numpy(x.astype(np.int64)).to(device) for x in (tokens, positions, slots)]
        attention = PagedAttention(self.cache, row[2], groups)
        with attention_in(self.model, attention.attend):
            return self.model.hidden(row[0][None], row[1][None], cache=attention)[0]


def padded(keys: int, queries: int) -> int:
    """A number of keys at which the sum over them is added up as at any larger one: MKL halves a sum of 192 to 384
    terms for four queries and more, and PyTorch's attention takes 512 keys at a time."""
    rest = keys % 512
    return keys + 384 - rest if queries >= ROWS and 192 < rest < 384 else keys


def table_of(blocks: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Lists of blocks as one table [rows, width], filled up with block 0."""
    table = np.zeros((len(blocks), width), np.int32)
    for row, numbers in zip(table, blocks):
        row[: len(numbers)] = numbers[:width]
    return table


def slots_of(tables: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Where positions [rows, n] of requests with tables [rows, blocks] are kept, counted in tokens."""
    return np.take_along_axis(tables, place // BLOCK, axis=1).astype(np.int64) * BLOCK + place % BLOCK


def fill(values: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """Values [n] and zeros after them."""
    filled = np.zeros(length, np.int64)
    filled[: len(values)] = values
    return filled
