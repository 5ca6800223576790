"""Training speed of an 8B-shaped model on one GPU: rows of 8,192 tokens in bf16 and in FP8, through the training loop.

    python benchmarks/gpu/pretrain.py                       # under 8 minutes on an H100 or H200
    python benchmarks/gpu/pretrain.py --layers 2 --seq-len 256 --preset 1m --steps 3     # anywhere, to try it

The model is 8B with as many layers as fit (weights, gradients and both moments in fp32 take 16 bytes a parameter). MFU
counts 6 FLOPs for each matrix parameter and token and attention over the full square, against the GPU's specified peak
in bf16. Several runs in one process: the first steps of each, which compile, are left out.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from puna.log import Log
from puna.model.llama import PRESETS, Llama, LlamaConfig, count_parameters, flops_per_token
from puna.recipe import Training
from puna.train.batches import Batch
from puna.train.launch import World
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""FLOP/s in bf16 without sparsity, from NVIDIA's data sheets."""
WARM = 3


class RandomRows:
    """Rows of random tokens in documents of about 1,000."""

    def __init__(self, config: LlamaConfig, rows: int, seq_len: int) -> None:
        self.vocab_size, self.count, self.seq_len = config.vocab_size, rows, seq_len

    def __len__(self) -> int:
        return self.count

    def rows(self, numbers: Sequence[int]) -> Batch:
        random = torch.Generator().manual_seed(numbers[0])
        shape = (len(numbers), self.seq_len)
        tokens = torch.randint(self.vocab_size, shape, generator=random)
        documents = (torch.rand(shape, generator=random) < 1e-3).cumsum(1)
        return Batch(tokens, tokens.roll(-1, 1), documents)


def fitting_layers(config: LlamaConfig, memory: float) -> int:
    """As many layers as leave 30% of the memory to activations and logits."""
    layers = config.layers
    while layers > 1 and 16 * count_parameters(dataclasses.replace(config, layers=layers)) > 0.7 * memory:
        layers -= 1
    return layers


def measure(config: LlamaConfig, arguments: argparse.Namespace, device: torch.device, float8: bool) -> float:
    """Tokens per second: the median of the steps after the first few."""
    recompute = {"layout": {"recompute": arguments.recompute}}
    knobs = {"seq_len": arguments.seq_len, "batch_rows": arguments.rows, "micro_rows": 1, "warmup_steps": 10}
    options = Training.model_validate(knobs | {"checkpoint_seconds": 1e9, "float8": float8} | recompute)
    with tempfile.TemporaryDirectory() as folder, torch.device("cpu"):
        model = Llama(config).init_weights(torch.Generator().manual_seed(0))
        rows = RandomRows(config, arguments.steps * arguments.rows, arguments.seq_len)
        log, loss = Log(Path(folder), "speed"), NextToken(use_compile(options, device))
        speeds: list[float] = []
        log.figures = lambda step, **values: speeds.append(values["tokens_per_second"])  # type: ignore[method-assign]
        train(model, rows, loss, options, World(device=device), Path(folder) / "work", log, "training")
    torch.distributed.destroy_process_group()
    return statistics.median(speeds[WARM:] or speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed on one GPU")
    parser.add_argument("--preset", default="8b", choices=list(PRESETS))
    parser.add_argument("--layers", type=int, help="default: as many as fit")
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=4, help="of a step, one at a time")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--recompute", default="selective", choices=["none", "selective", "full"])
    arguments = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    name = torch.cuda.get_device_name() if gpu else "CPU"
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    config = PRESETS[arguments.preset]
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else 4e9
    config = dataclasses.replace(config, layers=arguments.layers or fitting_layers(config, memory))
    flops = flops_per_token(config, arguments.seq_len)
    print(f"{name}, torch {torch.__version__}: {config.layers} layers, {count_parameters(config):,} parameters")
    speeds = {}
    for float8 in (False, True) if find_spec("torchao") else (False,):
        speeds[float8] = measure(config, arguments, device, float8)
        share = f", {flops * speeds[float8] / peak:.1%} MFU" if peak else ""
        print(f"{'float8' if float8 else 'bf16'}: {speeds[float8]:,.0f} tokens/s{share}", flush=True)
    if len(speeds) == 2:
        print(f"float8 / bf16: {speeds[True] / speeds[False]:.2f}")
    else:
        print("float8 is left out: pip install torchao")


if __name__ == "__main__":
    main()
