"""Runs a Llama on a GPU: passes of fixed shapes, each captured once as a CUDA graph, over blocks read where they lie.

A step goes through the model in one pass or two: the tokens of prompts, then the single tokens of outputs. A pass is
padded to one of a few shapes and reads its inputs from memory that stays where it is, so that it can be captured;
afterwards a step costs one copy of its inputs to the GPU and one launch, whatever the number of layers.

Attention is FlexAttention. Its BlockMask says for each tile of queries which blocks of keys it looks at, and those are
the numbers in the tile's block table: nothing is gathered or copied (the idea is that of attention-gym's
PagedAttention). A block of the cache stands at one place in all requests that share it, since it is known by its tokens
and all before them; one number for each block is therefore enough to tell which of its keys a query may see.

On a CPU the same code runs without capture and with plain attention in place of FlexAttention; tests/infer compares it
with TorchRunner, and the two attentions with each other.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from puna.infer.cache import BLOCK
from puna.infer.runner import slots_of
from puna.infer.scheduler import blocks_for
from puna.model.llama import Llama, rotate

QUERIES = 128
"""Of a tile of a prompt, and what FlexAttention calls its block of queries."""
SHAPES = 64
"""Shapes for which a function may be compiled, against PyTorch's limit of 8."""


class Shape(NamedTuple):
    tokens: int
    tiles: int
    queries: int
    """Of a tile: 1 where each token is an output's."""


def shape_for(tokens: int, tiles: int, queries: int) -> Shape:
    """The smallest shape with room, a power of two; twice as many tiles as would do if all of them were full."""
    size = queries
    while size < tokens or max(1, 2 * size // queries) < tiles:
        size *= 2
    return Shape(size, size if queries == 1 else 2 * size // queries, queries)


class Filling(NamedTuple):
    """What a pass computes, on the host."""

    fields: dict[str, np.ndarray]
    """By name, as long as they are filled; see Pass."""
    tables: np.ndarray
    """[tiles, blocks]"""
    source: np.ndarray
    """[tokens]: where each of the pass's tokens stands in the step."""


def filling(rows: np.ndarray, queries: int, tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray,
            tables: np.ndarray) -> Filling:  # fmt: skip
    """The requests `rows` of a step (the rest are the arguments of Runner.step), their tokens in tiles of `queries`."""
    brought = np.diff(starts)[rows]
    begin = np.cumsum(brought) - brought  # of each request in the pass
    count = np.arange(brought.sum())
    source = np.repeat(starts[rows] - begin, brought) + count
    positions = np.repeat(lengths[rows] - brought - begin, brought) + count
    slots = slots_of(np.repeat(tables[rows], brought, axis=0), positions[:, None])[:, 0]

    pieces = -(-brought // queries)
    request = np.repeat(np.arange(len(rows)), pieces)
    ahead = (np.arange(len(request)) - (np.cumsum(pieces) - pieces)[request]) * queries
    size = np.minimum(queries, brought[request] - ahead)
    within = np.arange(queries)
    gather = (begin[request] + ahead)[:, None] + np.minimum(within, size[:, None] - 1)
    scatter = np.zeros(len(source), np.int64)
    real = within < size[:, None]
    scatter[gather[real]] = np.flatnonzero(real)
    counts = blocks_of((lengths[rows] - brought)[request] + ahead + size)
    fields = {"tokens": tokens[source], "positions": positions, "slots": slots, "scatter": scatter}
    return Filling(fields | {"gather": gather.ravel(), "counts": counts}, tables[rows][request], source)


def blocks_of(tokens: np.ndarray) -> np.ndarray:
    return -(-tokens // BLOCK)


class Pass:
    """A pass of one shape: its inputs on the device, what is run on them, and the graph of that."""

    def __init__(self, runner: "GraphRunner", shape: Shape, cache: Tensor) -> None:
        self.runner, self.shape, device = runner, shape, cache.device
        self.layers = cache.flatten(2, 3)  # [layers, 2, slots, kv_heads, D]
        T, tiles, queries = shape
        sizes = {"tokens": T, "positions": T, "slots": T, "scatter": T, "gather": tiles * queries, "counts": tiles}
        self.inputs = torch.zeros(sum(sizes.values()), dtype=torch.int32, device=device)
        self.fields = dict(zip(sizes, self.inputs.split(list(sizes.values()))))
        width = min(blocks_for(runner.model.config.max_seq_len), cache.shape[2])
        self.tables = torch.zeros(tiles, width, dtype=torch.int32, device=device)
        self.last = torch.zeros(tiles, queries, dtype=torch.int32, device=device)
        """The position of each query, which is that of the last key it sees."""
        place, last = runner.place, self.last
        parts: list[Callable[..., Any]] = [before, after]
        self.before, self.after = ((compiled(part, shape.tokens == 1) if runner.compiled else part) for part in parts)

        def sees(row: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
            return place[slot // BLOCK] * BLOCK + slot % BLOCK <= last[row, query]

        # no block is said to be seen whole: the kernel for few queries shares out only the others among processors
        self.mask = BlockMask.from_kv_blocks(
            self.fields["counts"].view(tiles, 1, 1), self.tables[:, None, None], None, None, (QUERIES, BLOCK), sees,
            seq_lengths=(queries, self.layers.shape[2]), compute_q_blocks=False,
        )  # fmt: skip
        self._graph: Any = None
        self._hidden = torch.empty(0)

    def fill(self, made: Filling) -> None:
        """Bring a step's inputs to the device, in one copy. What they leave empty becomes tokens at slot 0."""
        host = {name: np.zeros(len(field), np.int32) for name, field in self.fields.items()}
        host["counts"][:] = 1
        for name, values in made.fields.items():
            host[name][: len(values)] = values
        tiles, width = made.tables.shape
        data = torch.from_numpy(np.concatenate([*host.values(), made.tables.astype(np.int32).ravel()]))
        if self.inputs.is_cuda:
            data = data.pin_memory().to(self.inputs.device, non_blocking=True)
        self.inputs.copy_(data[: len(self.inputs)])
        self.tables[:tiles, :width] = data[len(self.inputs) :].view(tiles, width)
        self.tables[tiles:, 0] = 0

    def run(self) -> Tensor:
        """Final hidden states [shape.tokens, dim] of what was filled in, valid until the next run."""
        if not self.inputs.is_cuda:
            return self._forward()
        if self._graph is None:  # run it once to compile, then again to capture: it writes the same twice
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=self.runner.pool):
                self._hidden = self._forward()
        self._graph.replay()
        return self._hidden

    def _forward(self) -> Tensor:
        model, positions, slots = self.runner.model, self.fields["positions"], self.fields["slots"].long()
        self.runner.place.index_copy_(0, slots // BLOCK, positions // BLOCK)
        self.last.copy_(positions[self.fields["gather"]].view_as(self.last))
        cos, sin = model.rope(positions[None])
        x = model.embed_tokens(self.fields["tokens"][None])  # [1, T, dim]
        for layer, (keys, values) in zip(model.layers, self.layers):
            q, k, v = self.before(layer, x, cos, sin)
            keys.index_copy_(0, slots, k)
            values.index_copy_(0, slots, v)
            x = self.after(layer, x, self._attend(q, keys, values))
        return model.norm(x)[0]

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q [T, heads, D] over a layer's keys and values [slots, kv_heads, D] -> [T, heads, D]."""
        _, tiles, queries = self.shape
        tiled = q if queries == 1 else q.index_select(0, self.fields["gather"])
        tiled = tiled.unflatten(0, (tiles, queries)).transpose(1, 2)  # [tiles, heads, queries, D]
        k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]  # views
        out = self.runner.attend(tiled, k, v, self).transpose(1, 2).flatten(0, 1)
        return out if queries == 1 else out.index_select(0, self.fields["scatter"])


class GraphRunner:
    """A puna.infer.runner.Runner for GPUs."""

    def __init__(self, model: Llama) -> None:
        self.model, self.device = model, next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        self.attend = flex_attend if on_gpu else plain_attend
        self.compiled = on_gpu
        self.pool = torch.cuda.graph_pool_handle() if on_gpu else None
        self.place = torch.zeros(0, dtype=torch.int32)
        """[blocks]: which of its requests' blocks each block of the cache is, counted from 0."""
        self._passes: dict[Shape, Pass] = {}
        self._cache: Tensor | None = None

    def step(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, block_tables: Tensor, cache: Tensor, wanted: Tensor
    ) -> Tensor:
        """As Runner.step."""
        if cache is not self._cache:
            self._passes, self._cache = {}, cache
            self.place = torch.zeros(cache.shape[2], dtype=torch.int32, device=self.device)
        arrays = [x.numpy() for x in (tokens, starts, lengths, block_tables)]
        single = singles(*arrays[1:])
        hidden, sources = [], []
        for rows, queries in ((np.flatnonzero(~single), QUERIES), (np.flatnonzero(single), 1)):
            if len(rows):
                made = filling(rows, queries, *arrays)
                shape = shape_for(len(made.source), len(made.tables), queries)
                if shape not in self._passes:
                    self._passes[shape] = Pass(self, shape, cache)
                self._passes[shape].fill(made)
                hidden.append(self._passes[shape].run()[: len(made.source)])
                sources.append(made.source)
        place_of = np.argsort(np.concatenate(sources))  # of the step's tokens in those of the passes
        places = torch.from_numpy(place_of[wanted.numpy()]).to(self.device, non_blocking=True)
        return self.model.lm_head(torch.cat(hidden)[places]).float()


def singles(starts: np.ndarray, lengths: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Which requests [n] bring one token and can wait for the pass of the prompts: all of them, unless a prompt shares
    a block that one of them fills in this very step, which then must be computed in one pass."""
    single = np.diff(starts) == 1
    written = tables[np.arange(len(tables)), (lengths - 1) // BLOCK][single]
    others = tables[~single][np.arange(tables.shape[1]) < blocks_of(lengths[~single])[:, None]]
    return single & ~np.isin(written, others).any()


def before(layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer up to its attention: x [1, T, dim] -> q, k and v [T, heads, D], rotated."""
    attention: Any = layer.self_attn
    x = layer.input_layernorm(x)  # pyright: ignore[reportCallIssue]
    q, k, v = (
        project(x).unflatten(-1, (-1, attention.head_dim))
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return rotate(q, cos, sin)[0], rotate(k, cos, sin)[0], v[0]


def after(layer: nn.Module, x: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a layer: x [1, T, dim] and what attention gave [T, heads, D] -> [1, T, dim]."""
    parts: Any = layer
    x = x + parts.self_attn.o_proj(mixed.flatten(1)[None])
    return x + parts.mlp(parts.post_attention_layernorm(x))


def flex_attend(q: Tensor, k: Tensor, v: Tensor, made: Pass) -> Tensor:
    """q [tiles, heads, queries, D] over k and v [1, kv_heads, slots, D], those slots that the pass's tables name."""
    # a tile of keys is a block, which on a GPU is smaller than the usual choice
    return _flex(q, k, v, block_mask=made.mask, enable_gqa=True, kernel_options={"BLOCK_N": BLOCK})


def plain_attend(q: Tensor, k: Tensor, v: Tensor, made: Pass) -> Tensor:
    """The same with the keys gathered."""
    tables, tiles = made.tables[:, : int(made.fields["counts"].max())].long(), len(q)
    slots = (tables[..., None] * BLOCK + torch.arange(BLOCK, device=q.device)).flatten()
    k, v = (x[0, :, slots].unflatten(1, (tiles, -1)).transpose(0, 1) for x in (k, v))
    seen = torch.arange(k.shape[2], device=q.device) <= made.last[..., None]
    return F.scaled_dot_product_attention(q, k, v, seen[:, None], enable_gqa=True)


@cache
def compiled(function: Callable[..., Any], one_row: bool) -> Callable[..., Any]:
    """A function compiled for each shape that it meets; all layers share what is compiled."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    # with this option products with one row become kernels that only stream the weights
    options: dict[str, Any] | None = {"coordinate_descent_tuning": True} if one_row else None
    return torch.compile(function, dynamic=False, fullgraph=True, options=options)


_flex = torch.compile(flex_attention, dynamic=False, fullgraph=True)
