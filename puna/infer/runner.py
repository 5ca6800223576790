"""Runs a Llama over a paged cache: prompts in chunks, outputs token by token.

The tokens of all requests in a step lie one after the other in a single row, so matrices are multiplied once for all
of them; only attention looks at each request's own blocks. It gathers a request's keys from its blocks into
one padded tensor for those rows that have as many queries each, and hands that to PyTorch's fused attention.

What a token gets must not depend on what shares its step. A row of a matrix product is added up in the same order
whatever the number of rows, as long as there are at least four (MKL has other kernels for one, two and three), and
the sum over keys is cut at places that depend on the number of keys only in a range that `padded` avoids; so in fp32
on a CPU results are the same to the bit. tests/infer holds this.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.infer.cache import BLOCK
from puna.infer.scheduler import Chunk, blocks_for
from puna.model.llama import Llama
from puna.train.attention import attention_in

ROWS = 4
"""Rows of every matrix product are filled up to a multiple of this."""
TILE = 256
"""Queries of a long chunk that attend together: they read no key after their own last."""
SMALL = 16
"""Queries up to which requests attend together whatever the number of their keys."""


class Group(NamedTuple):
    """Rows with equally many queries each, at `start` in the step's tokens: attention takes them together."""

    start: int
    rows: int
    queries: int
    places: Tensor
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
        parts.append(q[sum(map(len, parts)) :])  # filled up: any value will do
        return torch.cat(parts).transpose(0, 1)[None]

    def _attend(self, group: Group, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One group's part of q [T, heads, D] -> [rows * queries, heads, D]."""
        _, kv_heads, D = keys.shape
        q = q[group.start : group.start + group.rows * group.queries]
        k, v = (x.view(-1, D).index_select(0, group.places).view(group.rows, kv_heads, -1, D) for x in (keys, values))
        if group.queries == 1:  # the heads that share keys go as queries of one head
            q = q.view(group.rows, kv_heads, -1, D)
            return F.scaled_dot_product_attention(q, k, v, group.mask).view(group.rows, -1, D)
        q = q.view(group.rows, group.queries, -1, D).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, group.mask, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


class Runner(Protocol):
    """What runs a step: TorchRunner here, puna.infer.native on a CPU that it was compiled for, or puna.infer.parallel
    on several devices."""

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        """Append tokens to the cache and return the logits [len(wanted), vocab], fp32, of the tokens `wanted`.

        Request s brings tokens[starts[s] : starts[s + 1]], the last of its lengths[s] in the cache after this step; its
        row of block_tables [requests, blocks] names its blocks in order, 0 after the last. The cache is [layers, 2,
        blocks, BLOCK, kv_heads, D], everything else int32.
        """
        ...


class FollowedRunner(Runner, Protocol):
    """One that other processes follow."""

    def close(self) -> None:
        """Let them go."""
        ...


def batch_of(chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens, starts, lengths and block_tables of a step that computes these chunks."""
    tokens = [token for request, start, end in chunks for token in request.between(start, end)]
    starts = np.cumsum([0] + [end - start for _, start, end in chunks])
    lengths = [end for _, _, end in chunks]
    tables = np.zeros((len(chunks), blocks_for(max(lengths))), np.int32)
    for row, (request, _, end) in zip(tables, chunks):
        row[: blocks_for(end)] = request.blocks[: blocks_for(end)]
    tokens, starts, lengths = (torch.from_numpy(np.asarray(x, np.int32)) for x in (tokens, starts, lengths))
    return tokens, starts, lengths, torch.from_numpy(tables)


class Row(NamedTuple):
    """A step as one row of T tokens, filled up."""

    tokens: Tensor
    """[1, T]"""
    positions: Tensor
    """[1, T]"""
    attention: PagedAttention
    place_of: np.ndarray
    """Where each of the step's tokens stands in the row."""


class TorchRunner:
    """Runs a Llama with PyTorch, on any device."""

    def __init__(self, model: Llama) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self.sharing = model.config.heads // model.config.kv_heads  # heads with the same keys

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        """As Runner.step."""
        row = self.row(tokens, starts, lengths, block_tables, cache)
        return self.logits(self.hidden(row.tokens, row), row, wanted)

    def row(self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor) -> Row:
        """The arguments of Runner.step as a row."""
        flat, tables = tokens.numpy(), block_tables.numpy()
        inputs, groups = [], []  # of each group [3, rows * queries]: tokens, positions, slots
        place_of = np.zeros(len(flat), np.int64)  # of each token in the filled-up row
        begin = 0
        for keys, queries, (request, start, position, count) in self._tiles(starts.numpy(), lengths.numpy()):
            ahead = np.arange(queries)
            real = ahead < count[:, None]  # the rest fills up: it is computed, kept in block 0 and not looked at
            source = start[:, None] + np.minimum(ahead, count[:, None] - 1)
            places = position[:, None] + ahead
            table = with_width(tables[request], keys // BLOCK)
            slots = np.where(real, slots_of(table, np.minimum(places, keys - 1)), 0)
            inputs.append(np.stack([flat[source], places, slots]).reshape(3, -1))
            place_of[source[real]] = begin + np.flatnonzero(real)
            groups.append(self._group(begin, table, places, cache))
            begin += real.size
        inputs.append(np.zeros((3, -begin % ROWS), np.int64))
        row = torch.from_numpy(np.concatenate(inputs, 1)).to(self.device).long()
        return Row(row[None, 0], row[None, 1], PagedAttention(cache, row[2], groups), place_of)

    def hidden(self, x: Tensor, row: Row) -> Tensor:
        """The model's hidden states [1, T, dim] for a row's tokens, or for what stands in for them where the model is
        a part without the embedding."""
        with attention_in(self.model, row.attention.attend):
            return self.model.hidden(x, row.positions, cache=row.attention)

    def logits(self, hidden: Tensor, row: Row, wanted: Tensor) -> Tensor:
        """Hidden states [1, T, dim] -> logits [len(wanted), vocab] of the step's tokens `wanted`, in fp32."""
        hidden = hidden[0, torch.from_numpy(row.place_of[wanted.numpy()]).to(self.device)]
        return self.model.lm_head(F.pad(hidden, (0, 0, 0, -len(hidden) % ROWS))).float()[: len(hidden)]

    def _tiles(self, starts: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """The step cut into groups of equal shape: keys, queries, and [4, rows]: request, start in the step's tokens,
        position of the first token, number of tokens."""
        brought = np.diff(starts)
        pieces = -(-brought // TILE)
        request = np.repeat(np.arange(len(brought)), pieces)
        before = (np.arange(len(request)) - (np.cumsum(pieces) - pieces)[request]) * TILE  # tokens in earlier tiles
        start, position = starts[request] + before, (lengths - brought)[request] + before
        count = np.minimum(TILE, brought[request] - before)
        queries = np.where(count == 1, 1, -(-count // ROWS) * ROWS)
        keys = -(-(position + count) // BLOCK) * BLOCK
        for size in np.unique(queries).tolist():
            if size <= SMALL:  # few queries: better one group with some keys in vain than many groups
                keys[queries == size] = keys[queries == size].max()
            together = size if size > 1 else self.sharing
            for width in np.unique(keys[queries == size]).tolist():
                rows = (queries == size) & (keys == width)
                yield padded(width, together), size, np.stack([request, start, position, count])[:, rows]

    def _group(self, start: int, tables: np.ndarray, places: np.ndarray, cache: Tensor) -> Group:
        """For queries at positions [rows, queries] of requests with tables [rows, blocks]."""
        kv_heads, device = cache.shape[4], self.device
        blocks = torch.from_numpy(tables).to(device).long()
        tokens = (blocks[:, :, None] * BLOCK + torch.arange(BLOCK, device=device)).view(len(blocks), 1, -1)
        index = tokens * kv_heads + torch.arange(kv_heads, device=device)[:, None]
        unseen = torch.arange(tokens.shape[2], device=device) > torch.from_numpy(places).to(device)[..., None]
        mask = torch.zeros(unseen.shape, dtype=cache.dtype, device=device).masked_fill_(unseen, float("-inf"))
        rows, queries, _ = unseen.shape
        return Group(start, rows, queries, index.flatten(), mask[:, None])


def padded(keys: int, queries: int) -> int:
    """A number of keys at which the sum over them is added up as at any larger one: MKL halves a sum of 192 to 384
    terms for four queries and more, and PyTorch's attention takes 512 keys at a time."""
    rest = keys % 512
    return keys + 384 - rest if queries >= ROWS and 192 < rest < 384 else keys


def with_width(tables: np.ndarray, width: int) -> np.ndarray:
    """Tables [rows, blocks] cut, or filled up with block 0, to [rows, width]."""
    return np.pad(tables, ((0, 0), (0, max(0, width - tables.shape[1]))))[:, :width]


def slots_of(tables: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where positions [rows, n] of requests with tables [rows, blocks] are kept, counted in tokens."""
    return np.take_along_axis(tables, places // BLOCK, axis=1).astype(np.int64) * BLOCK + places % BLOCK
