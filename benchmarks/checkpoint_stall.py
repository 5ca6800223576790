"""How much of a training goes to its checkpoints: a model of about 100 million parameters, fp32, with two moments.

    python benchmarks/checkpoint_stall.py --folder FOLDER_ON_THE_DISK [--seconds 240]

Trains with `checkpoint_seconds` as by default, first as one process that holds the model whole, then as two that hold a
half each (FSDP). Training waits in `save`; what a step takes longer because of one is more, since writing goes on
beside it on the same cores. The checkpoint at the very end, for which nothing waits, is left out.
"""

import argparse
import ast
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puna.log import Log
from puna.model.llama import Llama, LlamaConfig, count_parameters
from puna.parallel.checkpoint import PartsCheckpoints
from puna.recipe import Pretrain
from puna.train.batches import Batch
from puna.train.checkpoint import Checkpoints
from puna.train.launch import World, launch
from puna.train.loop import train
from puna.train.losses import NextToken

CONFIG = LlamaConfig(8192, dim=768, layers=13, heads=12, kv_heads=4, ffn_dim=2048)
SEQ_LEN, ROWS = 128, 2
EVERY: float = Pretrain.model_fields["checkpoint_seconds"].default
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {"whole, one process": (1, {}), "two halves": (2, {"shard": 2})}


class Rows:
    """Random rows, each of a step noted by the time at which it was asked for, until the time is over."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps * ROWS

    def rows(self, numbers: Any) -> Batch:
        tokens = torch.randint(CONFIG.vocab_size, (len(numbers), SEQ_LEN), generator=torch.Generator().manual_seed(0))
        return Batch(tokens, tokens, torch.zeros_like(tokens))


def run(world: World, knobs: dict[str, Any], steps: int, folder: Path) -> None:
    options = Pretrain.model_validate(
        {"seq_len": SEQ_LEN, "batch_rows": ROWS, "tokens": steps * ROWS * SEQ_LEN, "compile": "off", "layout": knobs}
    )
    model = Llama(CONFIG).init_weights(torch.Generator().manual_seed(0))
    ends: dict[int, float] = {}
    WAITS.clear()

    def after_step(step: int, module: Any) -> None:
        ends[step] = time.monotonic()

    train(model, Rows(steps), NextToken(), options, world, folder / "work", Log(folder, "stall"), "stall", after_step)
    if world.rank == 0:
        (folder / "told").write_text(repr((ends, WAITS)))


def timed(save: Callable[..., None]) -> Any:
    def timed_save(checkpoints: Any, step: int) -> None:
        start = time.monotonic()
        save(checkpoints, step)
        WAITS[step] = time.monotonic() - start

    return timed_save


WAITS: dict[int, float] = {}
for kind in (Checkpoints, PartsCheckpoints):  # in every process: each imports this file
    kind.save = timed(kind.save)


def main() -> None:
    parser = argparse.ArgumentParser(description="The stall of checkpoints while training goes on")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="about as long for each")
    arguments = parser.parse_args()
    print(f"{count_parameters(CONFIG) / 1e6:.0f}M parameters, a checkpoint every {EVERY:.0f} s")
    print("| layout | s a step | training waits for each, s | of checkpoint_seconds | a step takes longer by, s |")
    print("|" + "---|" * 5, flush=True)
    for name, (processes, knobs) in LAYOUTS.items():
        folder = arguments.folder / "stall"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        launch(run, processes, knobs, 4, folder)  # to learn how long a step takes
        *_, before, last = read(folder)[0].values()
        shutil.rmtree(folder)
        folder.mkdir()
        launch(run, processes, knobs, round(arguments.seconds / (last - before)), folder)
        tabulate(name, *read(folder))
        shutil.rmtree(folder)


def read(folder: Path) -> tuple[dict[int, float], dict[int, float]]:
    """By step: when it ended, and how long training waited for its checkpoint."""
    return ast.literal_eval((folder / "told").read_text())


def tabulate(name: str, ends: dict[int, float], waits: dict[int, float]) -> None:
    waits = {step: seconds for step, seconds in waits.items() if step < max(ends)}
    took = {step: ends[step + 1] - ends[step] for step in ends if step + 1 in ends}
    alone = statistics.median(seconds for step, seconds in took.items() if step not in waits)
    share = statistics.mean(waits.values()) / EVERY
    each = ", ".join(f"{seconds:.2f}" for seconds in waits.values())
    longer = ", ".join(f"{took[step] - alone:.2f}" for step in waits)
    print(f"| {name} | {alone:.2f} | {each} | {share:.1%} | {longer} |", flush=True)


if __name__ == "__main__":
    main()
