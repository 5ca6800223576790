"""The engine on one GPU: first whether it is right, then how fast, beside the limit that memory bandwidth sets.

    python benchmarks/gpu/inference.py                                 # 8b, random weights, under 8 minutes
    python benchmarks/gpu/inference.py --preset 1m --device cpu        # the script itself, anywhere

Right: a small fp32 model's greedy tokens and log-probabilities through puna/infer/gpu.py (captured passes,
FlexAttention) are those of the plain PyTorch runner. The limit at batch 1 is one reading of all weights and of the
row's keys and values for each token; the bandwidth is measured by copying. Each shape is compiled before it is timed.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from puna.infer.cache import BLOCK, block_bytes
from puna.infer.engine import Engine, Sampling
from puna.model.fp8 import quantize
from puna.model.llama import PRESETS, Llama, LlamaConfig
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

GOALS = {"decode, batch 1": 240, "decode, batch 256": 15_000}
"""Tokens a second of the 8B in bf16 on one H200."""


def build_model(config: LlamaConfig, device: str, dtype: torch.dtype) -> Llama:
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return Llama(config).init_weights().eval()
        finally:
            torch.set_default_dtype(default)


def build(model: Llama, batch: int, length: int, native: bool = True) -> Engine:
    """An engine whose tokens are bytes and padding words, with room for `batch` requests of `length` tokens."""
    words = [bytes([i]) for i in range(256)]
    words += [b"\0" + i.to_bytes(3, "big") for i in range(model.config.vocab_size - 512)]
    tokenizer = Tokenizer({word: rank for rank, word in enumerate(words)}, special_names(256))
    blocks = batch * (length // BLOCK + 1)
    return Engine(model, tokenizer, blocks=blocks, rows=batch, budget=8192, native=native)


def check(device: str) -> None:
    """SystemExit where the runner does not say what the plain one says: prompts together, a long one in chunks, outputs
    beside a new prompt."""
    config = replace(PRESETS["1m"], vocab_size=1024, dim=512, heads=8, kv_heads=2, max_seq_len=8192)
    model = build_model(config, device, torch.float32)
    random = np.random.default_rng(2)
    prompts = [random.integers(256, size=size).tolist() for size in (3, 40, 128, 300, 700)]
    said = []
    for native in (True, False):
        engine = build(model, 64, 1024, native)
        found = {}
        for i, prompt in enumerate(prompts):
            found[engine.add(prompt, Sampling(24, ignore_stop=True, logprobs=0))] = []
            for _ in range(i):
                collect(engine, found)
        while engine.running or engine.waiting:
            collect(engine, found)
        said.append(list(found.values()))
    pairs = [(one, other) for row, others in zip(*said) for one, other in zip(row, others)]
    equal = sum(one.token == other.token for one, other in pairs) / len(pairs)
    apart = max(abs(one.logprob - other.logprob) for one, other in pairs if one.token == other.token)
    print(f"right: {equal:.1%} of {len(pairs)} greedy tokens, log-probabilities within {apart:.1e}", flush=True)
    if (
        equal < 0.95 or apart > 1e-2
    ):  # random weights have ties, and a tie that is broken otherwise changes a row's rest
        raise SystemExit("the two runners differ: the speed of a wrong one is of no interest")


def collect(engine: Engine, found: dict[int, list]) -> None:
    for output in engine.step():
        found[output.request] += output.logprobs or []


def bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(2**28 if device == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        start = now(device)
        target.copy_(source)
        times.append(now(device) - start)
    return 2 * len(source) / min(times)


def now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def decode(engine: Engine, batch: int, context: int, steps: int, device: str) -> list[float]:
    """Seconds of each step in which all of `batch` requests are in their output."""
    random = np.random.default_rng(0)
    for _ in range(batch):
        engine.add(random.integers(256, size=context).tolist(), Sampling(steps + 8 + batch, ignore_stop=True))
    outputs = 0
    while outputs < batch:
        outputs = len(engine.step())
    times = []
    for _ in range(steps):
        start = now(device)
        engine.step()
        times.append(now(device) - start)
    for request in list(engine._requests):
        engine.abort(request)
    engine.step()
    return times


def prefill(engine: Engine, tokens: int, rounds: int, device: str) -> list[float]:
    """Seconds for prompts of `tokens` tokens, one at a time."""
    random, times = np.random.default_rng(1), []
    for _ in range(rounds):
        ids = random.integers(256, size=tokens).tolist()
        start = now(device)
        engine.generate([ids], Sampling(1))
        times.append(now(device) - start)
    return times


def spread(times: list[float], amount: float) -> str:
    rates = [amount / seconds for seconds in times]
    return f"{statistics.median(rates):,.1f} ({min(rates):,.1f}-{max(rates):,.1f}) tokens/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="8b", choices=PRESETS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    begun, device, context = time.perf_counter(), args.device, args.context
    check(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    room = context + args.steps + args.batch + 8
    config = replace(PRESETS[args.preset], max_seq_len=8192)
    model = build_model(config, device, dtype)
    engine = build(model, args.batch, max(room, 8192 // args.batch))
    weights = sum(weight.nbytes for weight in model.parameters()) - model.embed_tokens.weight.nbytes
    limit = bandwidth(device) / (weights + block_bytes(config, dtype) / BLOCK * context)
    print(f"{args.preset}: memory gives at most {limit:,.1f} tokens/s at batch 1", flush=True)
    for batch in (1, args.batch):
        decode(engine, batch, context, 2, device)
        times = decode(engine, batch, context, args.steps, device)
        share = f", {1 / limit / statistics.median(times):.0%} of the limit (75% asked)" if batch == 1 else ""
        goal = GOALS.get(f"decode, batch {batch}")
        print(f"decode, batch {batch}: {spread(times, batch)}{share}; 8b on an H200: {goal} asked", flush=True)
    exact = [prefill(engine, context, rounds, device) for rounds in (2, 10)][1]
    print(f"prefill {context}: {spread(exact, context)}", flush=True)
    quantize(model)
    engine.forget()
    fp8 = [prefill(engine, context, rounds, device) for rounds in (2, 10)][1]
    ratio = statistics.median(exact) / statistics.median(fp8)
    print(f"prefill {context}, FP8: {spread(fp8, context)}, {ratio:.2f} of bf16 (1.3 asked)")
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
