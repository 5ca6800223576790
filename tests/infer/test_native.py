"""The compiled library against the model in PyTorch, in every instruction set that this processor has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.infer.native import library
from puna.infer.native.packing import products
from puna.infer.native.runner import NativeRunner, native_runner
from puna.model.int8 import to_int8
from puna.model.llama import PRESETS, Llama, LlamaConfig
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.save import save_model

pytestmark = pytest.mark.skipif(not library.instruction_sets(), reason="installed without a C compiler: no library")
SETS = [pytest.param(name, marks=pytest.mark.skipif(name not in library.instruction_sets(), reason=f"no {name} here"))
        for name in library.INSTRUCTIONS]  # fmt: skip
# neither dim, head_dim, ffn_dim nor vocabulary fill whole panels of 32 or vectors of 16
ODD = replace(PRESETS["1m"], vocab_size=203, dim=6 * 22, layers=2, heads=6, kv_heads=2, ffn_dim=75)
EVEN = replace(ODD, vocab_size=256, dim=256, heads=4, kv_heads=4, ffn_dim=320)
# relative to the largest logit; bf16 keeps 8 bits, and PyTorch rounds the residual stream to them as well
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-3, "int8_weights": 1e-5}


def build(config: LlamaConfig, precision: str = "fp32") -> Llama:
    model = Llama(config).init_weights(torch.Generator().manual_seed(1)).eval()
    if precision in ("int8", "int8_weights"):
        return to_int8(model, precision)
    return model.to(torch.bfloat16) if precision == "bf16" else model


class Harness:
    """A runner whose sequences lie in shuffled blocks of a cache that holds NaN where nothing was written."""

    def __init__(self, model: Llama, instructions: str | None = None, rows: int = 3, room: int = 96) -> None:
        config, blocks = model.config, rows * -(-room // 16)
        shape = (config.layers, 2, blocks, 16, config.kv_heads, config.head_dim)
        self.cache = torch.full(shape, torch.nan, dtype=model.embed_tokens.weight.dtype)
        self.runner = NativeRunner(model, products(model) or [], instructions)
        self.tables = torch.randperm(blocks, generator=torch.Generator().manual_seed(2)).view(rows, -1)
        self.lengths = torch.zeros(rows, dtype=torch.int32)

    def feed(self, parts: dict[int, Tensor]) -> list[Tensor]:
        """Append tokens to sequences in one step; the logits of each."""
        rows, sizes = list(parts), [len(tokens) for tokens in parts.values()]
        self.lengths[rows] += torch.tensor(sizes, dtype=torch.int32)
        starts, tokens = torch.tensor([0, *sizes]).cumsum(0), torch.cat(list(parts.values()))
        wanted = torch.arange(len(tokens))
        logits = self.runner.step(tokens, starts, self.lengths[rows], self.tables[rows], self.cache, wanted)
        return list(logits.split(sizes))

    def decode(self, rows: list[int], tokens: Tensor) -> Tensor:
        self.lengths[rows] += 1
        return self.runner.decode(tokens, self.lengths[rows], self.tables[rows], self.cache)


def tokens_for(config: LlamaConfig, rows: int, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))


def logits_of(model: Llama, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens).float()


def close(found: Tensor, wanted: Tensor, precision: str) -> bool:
    return bool((found - wanted).abs().max() <= TOLERANCE[precision] * wanted.abs().max())


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("config", [ODD, EVEN], ids=["odd", "even"])
def test_logits_are_the_models(config: LlamaConfig, precision: str, instructions: str):
    model = build(config, precision)
    tokens = tokens_for(config, 3, 72)
    wanted = logits_of(model, tokens)
    harness = Harness(model, instructions)
    # prompts of several lengths in one step, a prompt that goes on beside single tokens, then single tokens
    found = [[part] for part in harness.feed({0: tokens[0, :67], 1: tokens[1, :1], 2: tokens[2, :15]})]
    steps = [{0: tokens[0, 67:68], 1: tokens[1, 1:70], 2: tokens[2, 15:16]}]
    for parts in steps:
        for row, part in enumerate(harness.feed(parts)):
            found[row].append(part)
    for _ in range(2):
        step = harness.decode([0, 1, 2], tokens[range(3), harness.lengths])
        for row in range(3):
            found[row].append(step[row : row + 1])
    for row in range(3):
        rows = torch.cat(found[row])
        assert close(rows, wanted[row, : len(rows)], precision)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_row_does_not_depend_on_its_neighbours_or_threads(precision: str, instructions: str):
    model = build(ODD, precision)
    tokens = tokens_for(ODD, 13, 70)
    alone = Harness(model, instructions, rows=13)
    one_by_one = torch.cat([alone.feed({3: tokens[3, i : i + 5]})[0] for i in range(0, 70, 5)])
    together = Harness(model, instructions, rows=13)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        head = together.feed({row: tokens[row, : 69 - row] for row in range(13)})[3]
        tail = [together.feed({row: tokens[row, 69 - row + i :][:1] for row in range(13)})[3] for i in range(4)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(torch.cat([head, *tail]), one_by_one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_long_context(precision: str):
    config = replace(ODD, layers=1, vocab_size=64)
    model = build(config, precision)
    tokens = tokens_for(config, 1, 1500)
    harness = Harness(model, rows=1, room=1504)
    harness.feed({0: tokens[0, :700]})
    harness.feed({0: tokens[0, 700:1499]})
    assert close(harness.decode([0], tokens[0, 1499:]), logits_of(model, tokens)[0, -1:], precision)


def test_greedy_tokens_are_the_models():
    model = build(EVEN)
    harness = Harness(model)
    tokens = tokens_for(EVEN, 1, 9)
    logits = harness.feed({0: tokens[0]})[0][-1:]
    for _ in range(60):
        following = logits.argmax(-1)
        assert following == logits_of(model, tokens)[0, -1].argmax()
        tokens = torch.cat([tokens, following[None]], dim=1)
        logits = harness.decode([0], following)


def test_what_it_cannot_run_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch):
    model = build(ODD)
    assert native_runner(model) is not None
    assert native_runner(build(ODD).half()) is None
    assert native_runner(build(ODD).to("meta")) is None
    mixed = build(ODD)
    mixed.get_submodule("layers.1.self_attn.q_proj").to(torch.bfloat16)
    assert native_runner(mixed) is None
    with pytest.raises(PunaError, match="sse9"):
        NativeRunner(model, [], "sse9")
    with pytest.raises(ValueError, match="float16"):
        Harness(model).runner.decode(torch.zeros(1), torch.ones(1), torch.zeros(1, 1), torch.zeros(2, 2).half())
    monkeypatch.setattr(library, "load_library", lambda: None)
    assert native_runner(model) is None


def test_a_library_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "broken.so").write_bytes(b"not a library")
    assert library._open(tmp_path / "broken.so") is None
    built = next(Path(library.__file__).parent.glob("_native*"))
    assert library._open(built) is not None
    monkeypatch.setattr(library.ctypes, "sizeof", lambda _: 1)
    assert library._open(built) is None


@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_an_engine_in_int8_says_what_pytorch_says(tmp_path: Path, precision: Any):
    config = replace(EVEN, vocab_size=272, max_seq_len=64)
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    save_model(build(config), tokenizer, tmp_path)
    sampling = Sampling(max_tokens=12, ignore_stop=True, logprobs=0)
    logprobs = []
    for native in (True, False):
        engine = Engine.load(tmp_path, precision=precision, native=native)
        engine.add(list(range(30)), sampling)
        output = engine.step()[0]
        assert isinstance(engine._runner, NativeRunner) == native
        logprobs.append((output.logprobs or [])[0])
    assert logprobs[0].token == logprobs[1].token
    assert logprobs[0].logprob == pytest.approx(logprobs[1].logprob, abs=0.1)
    with pytest.raises(PunaError, match="int4"):
        Engine.load(tmp_path, precision="int4")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_log_probs_in_int8_are_near_the_models(precision: Any):
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    config = replace(EVEN, vocab_size=272)
    texts = [[5, 9, 200, 7], [1], [3] * 30]
    exact = Engine(build(config), tokenizer, blocks=8).log_probs(texts)
    for text, found, wanted in zip(
        texts, Engine(build(config, precision), tokenizer, blocks=8).log_probs(texts), exact
    ):
        assert found.shape == (len(text) - 1,)
        assert torch.allclose(found, wanted, atol=0.3)
        assert not torch.equal(found, wanted) or len(text) == 1
