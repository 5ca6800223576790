"""How much of a training goes to its checkpoints: a model of about 100 million parameters, fp32, with two moments.

    python benchmarks/checkpoint_stall.py --folder FOLDER_ON_THE_DISK [--seconds 240]

Trains with `checkpoint_seconds` as by default, first as one process that holds the model whole, then as two that hold a
half each (FSDP). What training waited is read from its own account; the steps begun while a checkpoint was written are
compared with the others, since writing takes a part of the machine. The first step, which starts things, counts in
neither.
"""

import argparse
import json
import shutil
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from puna.log import Log
from puna.model.llama import Llama, LlamaConfig, count_parameters
from puna.recipe import Pretrain
from puna.train.batches import Batch
from puna.train.clock import clock_file, read_clock
from puna.train.launch import World, launch
from puna.train.loop import train
from puna.train.losses import NextToken

CONFIG = LlamaConfig(8192, dim=768, layers=13, heads=12, kv_heads=4, ffn_dim=2048)
SEQ_LEN, ROWS = 128, 2
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
    times = (folder / "times").open("a")

    def after_step(step: int, module: Any) -> None:
        if world.rank == 0:
            writing = any((folder / "work").glob("*.aside"))
            times.write(json.dumps([time.monotonic(), writing]) + "\n")
            times.flush()

    train(model, Rows(steps), NextToken(), options, world, folder / "work", Log(folder, "stall"), "stall", after_step)


def main() -> None:
    parser = argparse.ArgumentParser(description="The stall of checkpoints while training goes on")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=240, help="about as long for each")
    arguments = parser.parse_args()
    print(f"{count_parameters(CONFIG) / 1e6:.0f}M parameters, a checkpoint every {Pretrain().checkpoint_seconds:.0f} s")
    print("| layout | s a step | each save makes a step longer by, s | waited | a step beside writing / alone |")
    print("|" + "---|" * 5, flush=True)
    for name, (processes, knobs) in LAYOUTS.items():
        folder = arguments.folder / "stall"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        launch(run, processes, knobs, 4, folder)  # to learn how long a step takes
        first = [json.loads(line)[0] for line in (folder / "times").read_text().splitlines()]
        steps = round(arguments.seconds / (first[-1] - first[-2]))
        shutil.rmtree(folder)
        folder.mkdir()
        launch(run, processes, knobs, steps, folder)
        tell(name, folder)
        shutil.rmtree(folder)


def tell(name: str, folder: Path) -> None:
    seconds = read_clock(folder, "stall")
    assert seconds
    saved = {int(step) for step in json.loads(clock_file(folder, "stall").read_text())["saved"]}
    lines = [json.loads(line) for line in (folder / "times").read_text().splitlines()]
    took: dict[str, list[float]] = {"saving": [], "writing": [], "alone": []}
    for step, ((begin, before), (end, after)) in enumerate(pairwise(lines), 1):
        took["saving" if step in saved else "writing" if before or after else "alone"].append(end - begin)
    alone = statistics.median(took["alone"])
    waits = ", ".join(f"{max(0.0, each - alone):.2f}" for each in took["saving"])
    slower = statistics.mean(took["writing"]) / alone if took["writing"] else 1.0
    share = seconds["checkpoints"] / (seconds["checkpoints"] + seconds["useful"])
    print(f"| {name} | {alone:.2f} | {waits} | {share:.2%} | {slower:.2f} |", flush=True)


if __name__ == "__main__":
    main()
