"""The runner for GPUs, on a CPU: fixed shapes, block tables as masks, FlexAttention, against the PyTorch runner."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.infer import gpu
from puna.infer.engine import Engine, Sampling
from puna.infer.gpu import GraphRunner, Shape, flex_attend, plain_attend, shape_for, singles
from puna.infer.runner import TorchRunner
from puna.model.fp8 import quantize
from puna.model.llama import PRESETS, Llama

CONFIG = replace(PRESETS["1m"], vocab_size=272, dim=64, layers=3, heads=4, kv_heads=2, ffn_dim=96, max_seq_len=2048)
BLOCKS = 60


@pytest.fixture(scope="module")
def model() -> Llama:
    return Llama(CONFIG).init_weights(torch.Generator().manual_seed(3)).eval()


class Steps:
    """The same steps in two runners, on shuffled blocks of caches that hold what others left."""

    def __init__(self, model: Llama, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        shape = (CONFIG.layers, 2, BLOCKS + 1, 16, CONFIG.kv_heads, CONFIG.head_dim)
        self.cache = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.runners = [(TorchRunner(model), self.cache.clone()), (GraphRunner(model), self.cache.clone())]
        self.lengths = np.zeros(4, np.int32)
        self.tables = (self.random.permutation(BLOCKS) + 1).astype(np.int32).reshape(4, -1)

    def step(self, brought: dict[int, int]) -> None:
        """Requests bring that many tokens; all logits must be alike."""
        rows = list(brought)
        self.lengths[rows] += np.array(list(brought.values()), np.int32)
        starts = torch.tensor([0, *brought.values()]).cumsum(0).int()
        tokens = torch.from_numpy(self.random.integers(272, size=sum(brought.values())).astype(np.int32))
        lengths, wanted = torch.from_numpy(self.lengths[rows]), torch.arange(len(tokens), dtype=torch.int32)
        tables = torch.from_numpy(self.tables[rows])[:, : -(-int(lengths.max()) // 16)]
        with torch.inference_mode():
            one, other = (runner.step(tokens, starts, lengths, tables, cache, wanted) for runner, cache in self.runners)
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_any_mix_of_prompts_and_single_tokens(model: Llama):
    steps = Steps(model, 1)
    for brought in ({0: 40}, {0: 1}, {0: 1, 1: 130, 2: 7}, {1: 1, 2: 1, 0: 1}, {3: 64, 2: 1}, {1: 20, 3: 1, 0: 17}):
        steps.step(brought)
    assert len(steps.runners[1][0]._passes) == 4  # 128 and 256 tokens, and decoding of 1, 2 or 4 rows


def dense_attend(q: Tensor, k: Tensor, v: Tensor, made: gpu.Pass) -> Tensor:
    """Attention to all slots under the mask that FlexAttention is given: its lists of blocks and its mask_mod."""
    rows, queries, slots = torch.meshgrid(*map(torch.arange, (len(q), q.shape[2], k.shape[2])), indexing="ij")
    lists = [table[:count].tolist() for table, count in zip(made.mask.kv_indices[:, 0, 0], made.mask.kv_num_blocks)]
    listed = torch.stack([torch.isin(torch.arange(k.shape[2]) // 16, torch.tensor(blocks)) for blocks in lists])
    seen = made.mask.mask_mod(rows, rows, queries, slots) & listed[:, None]
    k, v = (x.expand(len(q), -1, -1, -1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, seen[:, None], enable_gqa=True)


# compiled, since FlexAttention does not look at the lists of blocks otherwise; that takes 10 s
@pytest.mark.filterwarnings("ignore")  # torch's, while it compiles
@pytest.mark.parametrize(("queries", "attend"), [(1, dense_attend), (128, dense_attend), (128, flex_attend)])
def test_flex_attention_is_plain_attention(model: Llama, queries: int, attend: Callable[..., Tensor]):
    """Whatever lies in the cache and wherever the blocks of a tile are."""
    generator = torch.Generator().manual_seed(queries)
    cache = torch.randn(1, 2, BLOCKS, 16, 2, 16, generator=generator)
    runner = GraphRunner(model)
    runner.place = torch.zeros(BLOCKS, dtype=torch.int32)
    made = gpu.Pass(runner, Shape(4 * queries, 4, queries), cache)
    made.tables.copy_(torch.randperm(BLOCKS, generator=generator).repeat(4, 1))
    made.tables[:, :12] = torch.randperm(BLOCKS, generator=generator)[:48].view(4, 12).int()
    made.fields["counts"].copy_(torch.tensor([1, 12, 7, 3]))
    for table, count in zip(made.tables, made.fields["counts"]):
        runner.place[table[:count].long()] = torch.arange(int(count)).int()
    first = made.fields["counts"][:, None] * 16 - 16 + torch.tensor([[0], [9], [15], [3]]) - queries + 1
    made.last.copy_((first + torch.arange(queries)).clamp(min=0))
    q = torch.randn(4, 4, queries, 16, generator=generator)
    k, v = (x.flatten(0, 1).transpose(0, 1)[None] for x in cache[0])
    with torch.inference_mode():
        torch.testing.assert_close(attend(q, k, v, made), plain_attend(q, k, v, made), rtol=1e-5, atol=1e-5)


def test_the_same_tokens_as_without_padding(make_engine: Callable[..., Engine]):
    prompts = [list(range(5 + i, 20 + 9 * i)) for i in range(7)]
    engines = make_engine(blocks=99), make_engine(blocks=99)
    engines[1]._runner = GraphRunner(engines[1].model)
    for sampling in (Sampling(12, ignore_stop=True), Sampling(12, temperature=1.0, seed=4, ignore_stop=True)):
        one, other = (engine.generate(prompts, sampling, n=2) for engine in engines)
        assert one == other


def test_fp8_goes_through_it(model: Llama):
    quantized = Llama(CONFIG).init_weights(torch.Generator().manual_seed(3)).eval()
    steps = Steps(quantize(quantized), 5)
    steps.step({0: 30, 1: 2})
    steps.step({0: 1, 1: 1})


def test_layers_share_what_is_compiled(model: Llama):
    found = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        found.append(graph)
        return graph.forward

    compiled = torch.compile(gpu.before, dynamic=False, fullgraph=True, backend=backend)
    x, (cos, sin) = torch.randn(1, 3, 64), model.rope(torch.arange(3)[None])
    with torch.inference_mode():
        for layer in model.layers:
            for one, other in zip(compiled(layer, x, cos, sin), gpu.before(layer, x, cos, sin)):
                assert torch.equal(one, other)
    assert len(found) == 1


def test_shapes():
    assert shape_for(1, 1, 1) == Shape(1, 1, 1)
    assert shape_for(5, 5, 1) == Shape(8, 8, 1)
    assert shape_for(3, 1, 128) == shape_for(128, 2, 128) == Shape(128, 2, 128)
    assert shape_for(129, 2, 128) == shape_for(20, 3, 128) == Shape(256, 4, 128)


def test_a_prompt_that_shares_a_block_filled_in_the_same_step_goes_with_it():
    starts, lengths = np.array([0, 1, 31]), np.array([16, 46])
    apart, shared = np.array([[3, 0, 0], [4, 5, 6]]), np.array([[3, 0, 0], [3, 5, 6]])
    assert singles(starts, lengths, apart).tolist() == [True, False]
    assert singles(starts, lengths, shared).tolist() == [False, False]
