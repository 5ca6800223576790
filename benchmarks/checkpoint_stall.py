"""How long training waits for a checkpoint of a model of about 100 million parameters, and how long writing goes on.

    python benchmarks/checkpoint_stall.py --folder FOLDER_ON_THE_DISK [--parameters 100_000_000]

One process that holds the model whole, fp32 weights and two moments: 1.2 GB. The first save also gets the memory for
the copy. The share is that of `checkpoint_seconds`, 30 by default. Models in parts: docs/scale-out.md.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch

from puna.log import Log
from puna.recipe import Training
from puna.train.checkpoint import Checkpoints
from puna.train.optimizer import make_optimizer

SAVES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="The stall of a checkpoint")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    arguments = parser.parse_args()
    model = torch.nn.Linear(4096, arguments.parameters // 4096, bias=False)
    options = Training()  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(model, options)
    work = arguments.folder / "checkpoint_stall"
    log = Log(arguments.folder / "checkpoint_stall_log", "stall")
    checkpoints = Checkpoints(work, dict(model.named_parameters()), optimizer, {}, options, log, 0)
    for step in range(1, SAVES + 1):
        start = time.monotonic()
        checkpoints.save(step)
        stall = time.monotonic() - start
        checkpoints.wait()
        total = time.monotonic() - start
        share = stall / options.checkpoint_seconds
        print(f"save {step}: training waits {stall:.2f} s ({share:.1%} of checkpoint_seconds), all takes {total:.2f} s")
    shutil.rmtree(work)
    shutil.rmtree(log.folder)


if __name__ == "__main__":
    main()
