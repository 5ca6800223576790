"""Measure the recipe's own model for a few steps of the training loop, on one processor of this machine."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from puna.log import Log
from puna.machine import peak_flops, training_dtype
from puna.model.llama import Llama, LlamaConfig, count_parameters, flops_per_token
from puna.plan.machines import GIB, Machine
from puna.pretrain.pretrain import model_config
from puna.recipe import Recipe
from puna.train.batches import Batch
from puna.train.launch import World
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken

STEPS, WARM = 6, 2
STEP_SECONDS = 1.0
"""A step is to take no longer, at a guess of 30% of the peak: a larger model is measured in part."""


class RandomRows:
    """Rows of random tokens: speed does not depend on them."""

    def __init__(self, config: LlamaConfig, rows: int, seq_len: int) -> None:
        self._vocab_size, self._rows, self._seq_len = config.vocab_size, rows, seq_len

    def __len__(self) -> int:
        return self._rows

    def rows(self, numbers: Sequence[int]) -> Batch:
        generator = torch.Generator().manual_seed(numbers[0])
        tokens = torch.randint(self._vocab_size, (len(numbers), self._seq_len), generator=generator)
        return Batch(tokens, tokens, torch.zeros_like(tokens))


def calibrate(recipe: Recipe, machine: Machine) -> Machine:
    """`machine` (this one) with the MFU that pretraining the recipe's model reaches on one of its processors.

    What is too large for a short measurement is measured with fewer layers and shorter rows, and `source` says so.
    """
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    knobs = recipe.pretrain
    peak = peak_flops(device, training_dtype(knobs, device))
    whole = model_config(recipe.model, recipe.tokenizer.vocab_size)
    config, seq_len = shrink(whole, knobs.micro_rows, knobs.seq_len, peak, machine.processor.memory)
    options = knobs.model_copy(
        update={"batch_rows": knobs.micro_rows, "seq_len": seq_len, "checkpoint_seconds": 1e9, "warmup_steps": STEPS}
    )
    model = Llama(config).init_weights(torch.Generator().manual_seed(0))
    rows = RandomRows(config, STEPS * options.batch_rows, seq_len)
    loss = NextToken(use_compile(options, device))
    threads = torch.get_num_threads()
    torch.set_num_threads(torch.get_num_threads() if gpu else 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            log = Log(Path(folder), "calibrate")
            train(model, rows, loss, options, World(device=device), Path(folder) / "work", log, "calibrating")
            speed = log.last("tokens_per_second", STEPS - WARM)
    finally:
        torch.set_num_threads(threads)
    mfu = speed * flops_per_token(config, seq_len) / peak
    what = f"measured just now on one processor: {speed:,.0f} tokens/s, {mfu:.0%} of {peak / 1e12:,.2f} TFLOP/s"
    if (config.layers, seq_len) != (whole.layers, knobs.seq_len):
        what += f", with {config.layers} of {whole.layers} layers and rows of {seq_len:,} tokens"
    if gpu:
        what += f", {torch.cuda.max_memory_reserved() / GIB:.1f} GiB reserved"
    return dataclasses.replace(
        machine, processor=dataclasses.replace(machine.processor, bf16=peak, mfu=mfu, source=what)
    )


def shrink(config: LlamaConfig, rows: int, seq_len: int, peak: float, memory: float) -> tuple[LlamaConfig, int]:
    """The model and row length that a short measurement can carry: fewer layers first, then shorter rows."""

    def small_enough() -> bool:
        flops = rows * seq_len * flops_per_token(config, seq_len)
        return flops < 0.3 * peak * STEP_SECONDS and 18 * count_parameters(config) < memory / 2

    while not small_enough() and config.layers > 2:
        config = dataclasses.replace(config, layers=max(2, config.layers // 2))
    while not small_enough() and seq_len > 256:
        seq_len //= 2
    return config, seq_len
