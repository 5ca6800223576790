"""Decode and prefill speed of the engine on one GPU, beside the limit that memory bandwidth sets; random weights.

    python benchmarks/gpu/inference.py                                 # 8b in bf16, under 8 minutes
    python benchmarks/gpu/inference.py --preset 1m --device cpu        # the script itself, anywhere

The limit at batch 1 is one reading of all weights and of the row's keys and values for each token; the bandwidth is
measured by copying. The runner is the PyTorch one of puna/infer/runner.py: no CUDA graph, and blocks are gathered in
every layer.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from puna.infer.cache import BLOCK, block_bytes
from puna.infer.engine import Engine, Sampling
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names


def build(preset: str, device: str, dtype: torch.dtype, batch: int, length: int) -> Engine:
    """An engine whose tokens are bytes and padding words, with room for `batch` requests of `length` tokens."""
    config = PRESETS[preset]
    words = [bytes([i]) for i in range(256)]
    words += [b"\0" + i.to_bytes(3, "big") for i in range(config.vocab_size - 512)]
    tokenizer = Tokenizer({word: rank for rank, word in enumerate(words)}, special_names(256))
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = Llama(replace(config, max_seq_len=8192)).init_weights()
        finally:
            torch.set_default_dtype(default)
    return Engine(model, tokenizer, blocks=batch * (length // BLOCK + 1), rows=batch, budget=batch + 8192)


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
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    room = args.context + args.steps + args.batch + 8
    engine = build(args.preset, args.device, dtype, args.batch, max(room, 8192 // args.batch))
    speed = bandwidth(args.device)
    weights = sum(weight.nbytes for weight in engine.model.parameters()) - engine.model.embed_tokens.weight.nbytes
    cache = block_bytes(engine.model.config, dtype) / BLOCK * args.context
    limit = speed / (weights + cache)
    print(f"bandwidth {speed / 1e9:,.0f} GB/s; {args.preset}: at most {limit:,.1f} tokens/s at batch 1", flush=True)
    for batch in (1, args.batch):
        decode(engine, batch, args.context, 2, args.device)
        times = decode(engine, batch, args.context, args.steps, args.device)
        share = f", {limit**-1 / statistics.median(times):.0%} of the limit" if batch == 1 else ""
        print(f"decode, batch {batch}: {spread(times, batch)}{share}", flush=True)
    prefill(engine, args.context, 2, args.device)
    print(f"prefill {args.context}: {spread(prefill(engine, args.context, 10, args.device), args.context)}")


if __name__ == "__main__":
    main()
