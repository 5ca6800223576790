"""SFT and DPO beside TRL on a CPU: tokens per CPU-second and peak memory, the same model and data in one run.

    python benchmarks/posttraining.py --trl PYTHON [--steps 4] [--only sft]     # a Python that has trl and peft

Every contestant trains in a process of its own and waits after each step until it is its turn again, so what else the
machine does falls on all of them. A token is one of a chat, not padding; a pair has those of both its chats.
benchmarks/README.md tells what is equal.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spread import spread

VOCAB, LAYERS, DIM, SEQ_LEN, BATCH, PAD = 8192, 4, 256, 512, 8, 8191
DPO_ROWS = 3
"""Of 2 SEQ_LEN tokens, which hold about BATCH pairs."""
WARM_UP = 1
RANK, ALPHA = 16, 32.0
BETA, NLL = 0.1, 0.2
CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft fp32: puna": ("puna", "sft", {}),
    "sft fp32: TRL": ("trl", "sft", {}),
    "sft fp32: TRL without recomputation": ("trl", "sft", {"gradient_checkpointing": False}),
    "sft fp32: TRL packed": ("trl", "sft", {"packing": True}),
    "sft bf16: puna": ("puna", "sft", {"precision": "bf16"}),
    "sft bf16: TRL": ("trl", "sft", {"bf16": True}),
    "sft fp32: TRL, a chat at a time": ("trl", "sft", {"accumulated": True}),
    "lora fp32: puna": ("puna", "sft", {"lora": True}),
    "lora fp32: TRL": ("trl", "sft", {"lora": True}),
    "dpo fp32: puna": ("puna", "dpo", {}),
    "dpo fp32: TRL": ("trl", "dpo", {}),
    "dpo fp32: TRL, reference first": ("trl", "dpo", {"precompute_ref_log_probs": True}),
    "dpo fp32: TRL, reference first, without recomputation": (
        "trl", "dpo", {"precompute_ref_log_probs": True, "gradient_checkpointing": False},
    ),
    "dpo fp32: TRL, reference first, a pair at a time": (
        "trl", "dpo", {"precompute_ref_log_probs": True, "accumulated": True},
    ),
    "dpo lora fp32: puna": ("puna", "dpo", {"lora": True}),
    "dpo lora fp32: TRL, reference first": ("trl", "dpo", {"precompute_ref_log_probs": True, "lora": True}),
}  # fmt: skip


def some_chats(count: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of random tokens: together 64 to 512, the response a quarter to three quarters of them."""
    random = np.random.default_rng(0)
    chats = []
    for length, share in zip(random.integers(64, SEQ_LEN + 1, count), random.uniform(0.25, 0.75, count)):
        ids = random.integers(3, PAD, length).tolist()
        chats.append((ids[: int(length * share)], ids[int(length * share) :]))
    return chats


def some_pairs(count: int) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, chosen, rejected): a chat, and a rejected response of half to all of the chosen one's length."""
    random = np.random.default_rng(1)
    chats = some_chats(count)
    sizes = [max(1, int(len(chosen) * random.uniform(0.5, 1))) for _, chosen in chats]
    return [(prompt, chosen, random.integers(3, PAD, n).tolist()) for (prompt, chosen), n in zip(chats, sizes)]


def turn(tokens: int, extra_cpu: float = 0.0) -> None:
    """Tell what a step was, and wait until the next may begin."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("STEP", json.dumps({"tokens": tokens, "cpu": time.process_time() + extra_cpu, "peak": peak}), flush=True)
    if not sys.stdin.readline():
        os._exit(0)


# -- puna --


def run_puna(stage: str, settings: dict[str, Any], folder: Path, steps: int) -> None:
    from puna.train.launch import launch

    launch(_train_puna, 1, stage, settings, folder, steps)


def _train_puna(world: Any, stage: str, settings: dict[str, Any], folder: Path, steps: int) -> None:
    from types import SimpleNamespace

    from puna.log import Log
    from puna.model.lora import add_adapters
    from puna.model.weights import load_hf
    from puna.posttrain.dpo import Preferences, save_reference
    from puna.posttrain.preferences import Pair
    from puna.recipe import Dpo, Sft
    from puna.recipe.lora import Lora
    from puna.train.batches import PackedChats
    from puna.train.loop import train
    from puna.train.losses import NextToken, Preference

    common: dict[str, Any] = {
        "batch_rows": BATCH, "epochs": 1, "precision": settings.get("precision", "fp32"), "compile": "off",
        "checkpoint_seconds": 1e9, "processes": 1, "lora": Lora(rank=RANK if settings.get("lora") else 0, alpha=ALPHA),
    }  # fmt: skip
    log = Log(folder, "benchmark", True)
    some, per_pair, charged = [], 0.0, [0.0]
    if stage == "sft":
        knobs = Sft(seq_len=SEQ_LEN, **common)
        chats = [(p + r, [False] * len(p) + [True] * len(r)) for p, r in some_chats(steps * BATCH * 3)]
        rows: Any = PackedChats(chats, SEQ_LEN, PAD, 1, 0)
        loss: Any = NextToken()
    else:
        common["batch_rows"] = DPO_ROWS
        knobs = Dpo(seq_len=2 * SEQ_LEN, mask_format=False, beta=BETA, nll=NLL, **common)
        some = some_pairs(steps * 2 * BATCH)
        pairs = [Pair(*pair) for pair in some]
        names: Any = SimpleNamespace(pad_id=PAD, special={})
        rows = Preferences(pairs, None, knobs, names, 0)
        before = time.process_time()
        save_reference(rows, folder / "model", folder / "reference.npy", log)
        per_pair = (time.process_time() - before) / len(pairs)
        rows.reference = np.load(folder / "reference.npy")
        loss = Preference(BETA, NLL)
    model = add_adapters(load_hf(folder / "model", dtype=torch.float32), knobs.lora, 0)

    def after(step: int, module: Any) -> None:
        if stage == "sft":
            turn(int((rows.rows(range((step - 1) * BATCH, step * BATCH)).tokens != PAD).sum()))
            return
        numbers = [i for place in rows.orders[0][(step - 1) * DPO_ROWS : step * DPO_ROWS] for i in rows.bins[place]]
        # The reference's share of the time, which was spent at the start, is charged step by step, as TRL's is.
        charged[0] += len(numbers) * per_pair
        turn(sum(len(ids) for i in numbers for ids in (some[i][0], *some[i])), charged[0])

    train(model, rows, loss, knobs, world, folder / "work", log, "benchmark", after)


# -- TRL --


def run_trl(stage: str, settings: dict[str, Any], folder: Path, steps: int) -> None:
    import trl  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    torch.set_num_threads(1)
    seen, per_pair = [0], [0.0]

    class Turns(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn(seen[0], state.global_step * BATCH * per_pair[0])
            seen[0] = 0

    settings = dict(settings)
    together = 1 if settings.pop("accumulated", False) else BATCH
    adapters = None
    if settings.pop("lora", False):
        matrices = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapters = LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=matrices, task_type="CAUSAL_LM")
    common = {"bf16": False} | settings | {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": together, "max_steps": steps, "use_cpu": True,
        "gradient_accumulation_steps": BATCH // together, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "max_length": SEQ_LEN,
    }  # fmt: skip
    if stage == "sft":
        data: Any = [{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in some_chats(steps * BATCH * 3)]
        base, config = trl.SFTTrainer, trl.SFTConfig(**common)
    else:
        data = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in some_pairs(steps * BATCH)]
        preference = {"beta": BETA, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, NLL]}
        base, config = trl.DPOTrainer, trl.DPOConfig(**common, **preference)

    class Counted(base):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset if stage == "dpo" else super()._prepare_dataset(dataset, *args, **kwargs)

        def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            before = time.process_time()
            found = super()._precompute_ref_logps(dataset, *args, **kwargs)
            per_pair[0] = (time.process_time() - before) / len(dataset)
            return found

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            seen[0] += int((inputs["input_ids"] != PAD).sum())
            return super().training_step(model, inputs, *args, **kwargs)

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.config.pad_token_id = PAD
    tokenizer.add_tokens([f"<filler {i}>" for i in range(VOCAB - len(tokenizer))])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    Counted(
        model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer,
        peft_config=adapters, callbacks=[Turns()],
    ).train()  # fmt: skip


# -- the run --


class Contestant:
    def __init__(self, name: str, python: str, folder: Path, steps: int) -> None:
        self.steps: list[dict[str, float]] = []
        command = [python, __file__, "--contestant", name, "--folder", str(folder), "--steps", str(steps)]
        self.errors = (folder / f"{name.replace(' ', '-')}.txt").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def wait(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("STEP "):
                self.steps.append(json.loads(line[5:]))
                return
        self.errors.seek(0)
        raise SystemExit(f"{self.process.args} ended:\n{self.errors.read()[-3000:]}")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def speeds(self) -> list[float]:
        """Tokens per CPU-second of every step after the first ones."""
        pairs = zip(self.steps[WARM_UP - 1 :], self.steps[WARM_UP:])
        return [after["tokens"] / (after["cpu"] - before["cpu"]) for before, after in pairs]


def make_model(folder: Path) -> None:
    from puna.model.llama import Llama, LlamaConfig
    from puna.text.tokenizer import Tokenizer
    from puna.text.tokenizer_files import special_names
    from puna.train.save import save_model

    config = LlamaConfig(VOCAB, dim=DIM, layers=LAYERS, heads=8, kv_heads=4, ffn_dim=704, max_seq_len=2 * SEQ_LEN)
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    save_model(Llama(config).init_weights(torch.Generator().manual_seed(0)), tokenizer, folder / "model", torch.float32)


def compete(names: list[str], trl_python: str, steps: int) -> None:
    print(f"torch {torch.__version__}; {LAYERS} layers, dim {DIM}, vocabulary {VOCAB}, up to {SEQ_LEN} tokens a chat")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        contestants: dict[str, Contestant] = {}
        try:
            for number, name in enumerate(names):
                own = folder / str(number)
                own.mkdir()
                (own / "model").symlink_to(folder / "model")
                python = sys.executable if CONTESTANTS[name][0] == "puna" else trl_python
                contestants[name] = Contestant(name, python, own, steps + WARM_UP)
                contestants[name].wait()
            for _ in range(steps):
                for one in contestants.values():
                    one.go()
                    one.wait()
            report(contestants)
        finally:
            for one in contestants.values():
                one.process.kill()
                one.process.wait()


def report(contestants: dict[str, Contestant]) -> None:
    print("\n| contestant | tokens per CPU-second | tokens a step | peak MiB | speed, puna's over it | memory |")
    print("|" + "---|" * 6)
    for name, one in contestants.items():
        ours = contestants.get(name.partition(":")[0] + ": puna", one)
        speeds, peak = one.speeds(), one.steps[-1]["peak"]
        faster = statistics.median(mine / its for mine, its in zip(ours.speeds(), speeds))
        tokens = statistics.mean(step["tokens"] for step in one.steps)
        cells = [
            name, spread(speeds, 0), f"{tokens:,.0f}",
            f"{peak:,.0f}", f"{faster:.2f}", f"{ours.steps[-1]['peak'] / peak:.2f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description="SFT and DPO beside TRL on a CPU")
    parser.add_argument("--trl", default="", help="a Python that has trl and peft; without it puna runs alone")
    parser.add_argument("--steps", type=int, default=4, help="of each contestant, after the first")
    parser.add_argument("--only", default="", help="contestants whose name contains one of these, by semicolons")
    parser.add_argument("--contestant", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        family, stage, settings = CONTESTANTS[arguments.contestant]
        {"puna": run_puna, "trl": run_trl}[family](stage, settings, arguments.folder, arguments.steps)
        return
    names = [name for name in CONTESTANTS if any(part in name for part in arguments.only.split(";"))]
    names = [name for name in names if arguments.trl or CONTESTANTS[name][0] == "puna"]
    compete(names, arguments.trl, arguments.steps)


if __name__ == "__main__":
    main()
