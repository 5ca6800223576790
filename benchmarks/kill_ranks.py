"""Kills one of four training processes at random moments, and compares the weights with those of a run left alone.

    python benchmarks/kill_ranks.py --kills 20

torchrun starts the processes (tensor parallelism over two, two replicas, on CPUs) and starts them again after each
kill -9; they resume from the newest whole checkpoint by themselves.
"""

import argparse
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from puna.log import Log
from puna.pretrain import pretrain
from puna.recipe import Recipe, parse_recipe
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.launch import follow

PROCESSES = 4


def make_inputs(folder: Path) -> dict[str, Path]:
    """A tokenizer of single bytes, and this project's pages as text."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    tokenizer.save(folder / "tokenizer")
    shards = folder / "shards"
    shards.mkdir()
    texts = [path.read_text() for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))]
    ids = [i for text in texts for i in tokenizer.encode(text, bos=True)]
    np.array([*ids, tokenizer.bos_id], np.uint16).tofile(shards / "general.bin")
    (shards / "shards.json").write_text(json.dumps({"dtype": "uint16"}))
    return {"tokenizer": folder / "tokenizer", "shards": shards}


def make_recipe(steps: int) -> Recipe:
    rows, seq_len = 8, 64
    model = {"preset": "1m", "dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 128}
    pretraining = {
        "tokens": steps * rows * seq_len, "seq_len": seq_len, "batch_rows": rows, "micro_rows": 2, "peak_lr": 3e-3,
        "warmup_steps": 10, "mix": {"general": 1.0}, "max_epochs": 1e6, "precision": "fp32", "compile": "off",
        "checkpoint_seconds": 1.0, "layout": {"tp": 2},
    }  # fmt: skip
    return parse_recipe({"name": "killed", "model": model, "pretrain": pretraining}, "this benchmark")


def train(arguments: Path) -> None:
    """What each of torchrun's processes does."""
    if not follow():
        recipe, inputs, out = pickle.loads(arguments.read_bytes())
        pretrain.run(recipe, inputs, out, Log(out.parent / "log", "pretrain", quiet=True))


def start(recipe: Recipe, inputs: dict[str, Path], folder: Path) -> subprocess.Popen[bytes]:
    out = folder / "out"
    out.mkdir(parents=True)
    (folder / "arguments").write_bytes(pickle.dumps((recipe, inputs, out)))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--standalone"]
    ours = [str(Path(__file__).resolve()), "--train", str(folder / "arguments")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "torchrun.log").open("wb") as log:
        command = [sys.executable, *torchrun, "--max-restarts", "1000", *ours]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def steps_done(folder: Path) -> int:
    path = folder / "log" / "pretrain.jsonl"
    return sum(line.endswith(b"\n") for line in path.read_bytes().splitlines(True)) if path.exists() else 0


def kill_one(torchrun: subprocess.Popen[bytes], choose: random.Random) -> bool:
    """kill -9 of a process that trains; False if there is none."""
    workers = [p for p in psutil.Process(torchrun.pid).children() if "--train" in p.cmdline()]
    if workers:
        choose.choice(workers).send_signal(signal.SIGKILL)
    return bool(workers)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "out" / "model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Training under torchrun while its processes are killed")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
        return
    choose, kills = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, recipe = make_inputs(folder), make_recipe(arguments.steps)
        began = time.monotonic()
        assert start(recipe, inputs, folder / "alone").wait() == 0, (folder / "alone" / "torchrun.log").read_text()
        alone = time.monotonic() - began
        print(f"left alone: {arguments.steps} steps in {alone:.0f} s", flush=True)
        torchrun = start(recipe, inputs, folder / "killed")
        began = time.monotonic()
        while torchrun.poll() is None:
            if len(kills) < arguments.kills:
                before, wait = steps_done(folder / "killed"), choose.uniform(0, 4)
                while torchrun.poll() is None and steps_done(folder / "killed") == before:
                    time.sleep(0.05)  # it is starting again
                time.sleep(wait)
                if torchrun.poll() is None and kill_one(torchrun, choose):
                    kills.append(steps_done(folder / "killed"))
                    print(f"kill {len(kills)} at step {kills[-1]}", flush=True)
                    time.sleep(1)
            else:
                time.sleep(0.2)
        print(
            f"killed {len(kills)} times at steps {kills}: {time.monotonic() - began:.0f} s, exit {torchrun.returncode}"
        )
        if torchrun.returncode:
            shutil.copyfile(folder / "killed" / "torchrun.log", "kill_ranks.log")
            sys.exit("training failed; torchrun's output is in kill_ranks.log")
        same = digest(folder / "alone") == digest(folder / "killed")
        print("same weights" if same else "OTHER WEIGHTS")
        sys.exit(not same)


if __name__ == "__main__":
    main()
