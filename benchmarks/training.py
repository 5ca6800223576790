"""Whole-step training speed beside transformers.Trainer and nanochat: the same rows, the same cores, one run.

    python benchmarks/training.py [--seconds 20] [--rounds 5] [--preset 1m] [--nanochat CHECKOUT]

Every contestant trains in processes of its own, without end. Once it has warmed up (compiled) it is stopped by a
signal, and from then on they take turns for a few seconds each, round after round, so that what else the machine does
falls on all of them; speed is read from the times at which steps began. benchmarks/README.md tells what is equal.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from spread import spread

from puna.log import Log
from puna.machine import physical_cores
from puna.model.llama import PRESETS, Llama, LlamaConfig, count_parameters, flops_per_token
from puna.model.weights import save_hf
from puna.recipe import Pretrain, load_recipe
from puna.train.batches import Batch
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "puna, defaults": ("puna", {}),
    "puna, fp32 eager": ("puna", {"precision": "fp32", "compile": "off"}),
    "puna, fp32 compiled": ("puna", {"precision": "fp32", "compile": "on"}),
    "puna, bf16 compiled": ("puna", {"precision": "bf16", "compile": "on"}),
    "puna, one process": ("puna", {"processes": 1}),  # of as many threads as there are cores
    "Trainer, defaults": ("trainer", {}),  # fp32, eager
    "Trainer, bf16 compiled": ("trainer", {"bf16": True, "torch_compile": True}),
    "nanochat, defaults": ("nanochat", {"NANOCHAT_DTYPE": "float32"}),  # what it picks on a CPU; it always compiles
    "nanochat, bf16": ("nanochat", {"NANOCHAT_DTYPE": "bfloat16"}),
}
COMPARISONS = [
    ("defaults", "puna, defaults", "Trainer, defaults", 2.0),
    ("both fp32 eager", "puna, fp32 eager", "Trainer, defaults", 1.15),
    ("both bf16 compiled", "puna, bf16 compiled", "Trainer, bf16 compiled", 1.15),
    ("a process for each core", "puna, defaults", "puna, one process", 1.0),
    ("defaults", "puna, defaults", "nanochat, defaults", 1.0),
    ("both fp32 compiled", "puna, fp32 compiled", "nanochat, defaults", 1.0),
    ("both bf16 compiled", "puna, bf16 compiled", "nanochat, bf16", 1.0),
]
RECIPE = Path(__file__).parents[1] / "recipes" / "tiny.toml"
WARM_UP_STEPS = 20
SETTLE_SECONDS = 1.0
ENDLESS = 100_000_000
DOCUMENT_TOKENS = 100


def note_step(path: Path) -> None:
    """Write down that a step begins now, where the parent process reads it."""
    with path.open("ab") as handle:
        handle.write(np.float64(time.monotonic()).tobytes())


def knobs() -> Pretrain:
    """The tiny recipe's batch, without end; no checkpoints, since the others write none either; and no step is left
    out: on noise the gradient's norm leaps now and then, and a few such steps in a row would end the training."""
    options = load_recipe(RECIPE).pretrain
    return options.model_copy(
        update={"checkpoint_seconds": 1e9, "spike": 0.0, "tokens": ENDLESS * options.batch_tokens}
    )


def model_config(preset: str) -> LlamaConfig:
    return replace(PRESETS[preset], vocab_size=load_recipe(RECIPE).tokenizer.vocab_size)


class MemoryRows:
    """Rows in memory, of documents of random length, without end."""

    def __init__(self, config: LlamaConfig, options: Pretrain, steps: Path | None = None) -> None:
        random = np.random.default_rng(0)
        shape = (1024, options.seq_len + 1)
        self.tokens = torch.from_numpy(random.integers(0, config.vocab_size, shape))
        self.documents = torch.from_numpy((random.random(shape) < 1 / DOCUMENT_TOKENS).cumsum(1))[:, :-1]
        self.batch_rows, self.steps = options.batch_rows, steps

    def __len__(self) -> int:
        return ENDLESS * self.batch_rows

    def rows(self, numbers: Any) -> Batch:
        if self.steps and numbers[0] % self.batch_rows == 0:
            note_step(self.steps)
        picked = torch.tensor(numbers) % len(self.tokens)
        rows = self.tokens[picked]
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), self.documents[picked])


def run_puna(config: LlamaConfig, settings: dict[str, Any], folder: Path, path: Path) -> None:
    options = knobs().model_copy(update=settings)
    launch(_train_puna, count_processes(options), config, options, folder, path)


def _train_puna(world: World, config: LlamaConfig, options: Pretrain, folder: Path, path: Path) -> None:
    model = Llama(config).init_weights(torch.Generator().manual_seed(0))
    rows = MemoryRows(config, options, path if world.rank == 0 else None)
    loss = NextToken(compiled=use_compile(options, world.device))
    train(model, rows, loss, options, world, folder / "work", Log(folder, "training"), "benchmark")


def run_trainer(config: LlamaConfig, settings: dict[str, Any], folder: Path, path: Path) -> None:
    """transformers' own model with our weights, and its loop as it is."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    options = knobs()
    ours = Llama(config).init_weights(torch.Generator().manual_seed(0))
    save_hf(ours, config, folder / "model", dtype=torch.float32, bos_id=0, eos_ids=[1], pad_id=2)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    rows = MemoryRows(config, options).tokens[:, :-1]

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            note_step(path)

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=options.batch_rows,
        max_steps=ENDLESS,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    dataset: Any = [{"input_ids": row, "labels": row} for row in rows]
    Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[Steps()]).train()


def run_nanochat(config: LlamaConfig, settings: dict[str, Any], folder: Path, path: Path) -> None:
    """The step of its scripts/base_train.py on a CPU, compiled, on its nearest model: our width, depth, heads and
    vocabulary; its MLP is 4x wide, of two matrices for our three."""
    import gc

    os.environ |= settings
    sys.path.insert(0, os.environ["NANOCHAT"])
    from nanochat.gpt import GPT, GPTConfig  # pyright: ignore[reportMissingImports]

    options = knobs()
    torch.manual_seed(0)
    sizes = {"n_layer": config.layers, "n_head": config.heads, "n_kv_head": config.kv_heads, "n_embd": config.dim}
    plain = GPT(GPTConfig(options.seq_len, config.vocab_size, window_pattern="L", **sizes))
    plain.init_weights()
    optimizer = plain.setup_optimizer()
    model = torch.compile(plain, dynamic=False)
    rows = MemoryRows(config, options)
    describe(folder, plain.estimate_flops(), sum(p.numel() for p in plain.parameters()))
    gc.disable()
    for step in range(ENDLESS):
        note_step(path)
        batch = rows.rows(range(step * options.batch_rows, (step + 1) * options.batch_rows))
        loss = model(batch.tokens, batch.labels)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        optimizer.step()
        plain.zero_grad(set_to_none=True)
        loss.item()


def describe(folder: Path, flops: int, parameters: int) -> None:
    (folder / "model.json").write_text(json.dumps({"flops": flops, "parameters": parameters}))


class Contestant:
    """One set of processes that trains while it is let."""

    def __init__(self, name: str, preset: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        self.path = folder / "steps"
        self.path.touch()
        config, options = model_config(preset), knobs()
        describe(folder, flops_per_token(config, options.seq_len), count_parameters(config))
        self.batch_tokens = options.batch_tokens
        self.speeds: list[float] = []
        self.per_cpu_second: list[float] = []
        command = [sys.executable, __file__, "--preset", preset, "--contestant", name, "--folder", str(folder)]
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        while len(self.steps()) < WARM_UP_STEPS:
            if self.process.poll() is not None:
                raise SystemExit(f"{name} ended:\n{(folder / 'output').read_text()[-3000:]}")
            time.sleep(0.5)
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def steps(self) -> np.ndarray:
        data = self.path.read_bytes()
        return np.frombuffer(data[: len(data) // 8 * 8], np.float64)

    def cpu_seconds(self) -> float:
        parent = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in [parent, *parent.children(recursive=True)]]
        return sum(t.user + t.system for t in times)

    def turn(self, seconds: float) -> None:
        """Let it train, and note its speed between the first and the last step that began in the time."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        start, cpu, done = time.monotonic(), self.cpu_seconds(), len(self.steps())
        time.sleep(seconds)
        while self.process.poll() is None and len(self.steps()) < done + 3:  # threads can wait long for a busy core
            time.sleep(0.1)
        used, tokens = self.cpu_seconds() - cpu, (len(self.steps()) - done) * self.batch_tokens
        self.signal(signal.SIGSTOP)
        began = self.steps()
        began = began[began >= start]
        self.speeds.append((len(began) - 1) * self.batch_tokens / (began[-1] - began[0]))
        self.per_cpu_second.append(tokens / used)


def report(contestants: dict[str, Contestant]) -> None:
    print("\n| contestant | parameters | MFLOP/token | tokens/s | GFLOP/s | tokens per CPU-second |\n|" + "---|" * 6)
    for one in contestants.values():
        model = json.loads((one.folder / "model.json").read_text())
        flops, speed = model["flops"], statistics.median(one.speeds)
        cells = [one.name, f"{model['parameters']:,}", f"{flops / 1e6:.2f}", spread(one.speeds, 0)]
        print("| " + " | ".join([*cells, f"{speed * flops / 1e9:.0f}", spread(one.per_cpu_second, 0)]) + " |")
    print("\n| comparison | tokens/s | per CPU-second | goal |\n|" + "---|" * 4)
    for title, ours, theirs, goal in COMPARISONS:
        if ours in contestants and theirs in contestants:
            a, b = contestants[ours], contestants[theirs]
            ratios = [x / y for x, y in zip(a.speeds, b.speeds)]
            per_cpu = [x / y for x, y in zip(a.per_cpu_second, b.per_cpu_second)]
            cells = [f"{title}: {ours} / {theirs}", spread(ratios, 2), spread(per_cpu, 2), f">= {goal:g}"]
            print("| " + " | ".join(cells) + " |")


def compete(preset: str, seconds: float, rounds: int, names: list[str]) -> None:
    import transformers

    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    options = knobs()
    print(
        f"{physical_cores()} cores, {versions}; preset {preset}, {options.batch_rows} rows of {options.seq_len} a step"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `finally` ends what is stopped
    contestants: dict[str, Contestant] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number, name in enumerate(names):
                contestants[name] = Contestant(name, preset, Path(folder) / str(number))
                print(f"ready: {name}", flush=True)
            for number in range(rounds):
                for one in contestants.values():
                    one.turn(seconds)
                speeds = ", ".join(f"{one.speeds[-1]:,.0f}" for one in contestants.values())
                print(f"round {number + 1}: {speeds}; load average {os.getloadavg()[0]:.1f}", flush=True)
            report(contestants)
        finally:
            for one in contestants.values():
                one.signal(signal.SIGKILL)
                one.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Training speed beside transformers.Trainer and nanochat")
    parser.add_argument("--seconds", type=float, default=20, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="1m", choices=list(PRESETS))
    parser.add_argument("--nanochat", type=Path, help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--only", default="", help="contestants whose name contains one of these, by semicolons")
    parser.add_argument("--contestant", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        family, settings = CONTESTANTS[arguments.contestant]
        run = {"puna": run_puna, "trainer": run_trainer, "nanochat": run_nanochat}[family]
        run(model_config(arguments.preset), settings, arguments.folder, arguments.folder / "steps")
        return
    names = [name for name in CONTESTANTS if any(part in name for part in arguments.only.split(";"))]
    if arguments.nanochat is None:
        print("nanochat is left out: give its checkout with --nanochat")
        names = [name for name in names if CONTESTANTS[name][0] != "nanochat"]
    elif not (arguments.nanochat / "nanochat" / "gpt.py").exists():
        parser.error(f"--nanochat {arguments.nanochat}: no nanochat/gpt.py there; give the root of its checkout")
    else:
        os.environ["NANOCHAT"] = str(arguments.nanochat.resolve())
    compete(arguments.preset, arguments.seconds, arguments.rounds, names)


if __name__ == "__main__":
    main()
