"""What the anneal and the mean of its weights do to the held-out loss: three seeds of a small model, paired.

    python benchmarks/anneal.py RUN [--tokens N] [--seeds N]

RUN is the folder of a run that has the artifacts tokenizer and shards. Each seed trains twice on the same rows: with
the cosine to its end, and with a linear anneal to zero over the last fifth, whose last weights and whose mean are both
scored. Differences are paired by seed; their intervals are Student's.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import stats

from puna.log import Log
from puna.model.llama import Llama
from puna.pretrain.pretrain import model_config, train_on
from puna.recipe import Model, Pretrain
from puna.text.tokenizer import Tokenizer
from puna.train.held_out import held_out_loss
from puna.train.launch import World

SHAPE = {"preset": "1m", "dim": 64, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_dim": 176}


def losses(run: Path, seed: int, tokens: int, average: int, work: Path) -> dict[str, float]:
    """Held-out loss in nats a token of each way to end the training."""
    tokenizer, shards, world = Tokenizer.load(run / "tokenizer"), run / "shards", World()
    plain: dict[str, Any] = {
        "tokens": tokens, "seq_len": 256, "batch_rows": 4, "micro_rows": 4, "peak_lr": 1e-2, "warmup_steps": 20,
        "final_lr": 0.1, "compile": "off", "precision": "fp32", "checkpoint_seconds": 1e9, "processes": 1,
    }  # fmt: skip
    annealed = plain | {"anneal_tokens": tokens // 5, "average": average}
    found = {}
    for name, values in {"cosine": plain, "mean": annealed}.items():
        knobs = Pretrain(**values)
        model = Llama(model_config(Model(**SHAPE), tokenizer.vocab_size))
        model.init_weights(torch.Generator().manual_seed(seed))
        train_on(shards, model, tokenizer, knobs, seed, world, work / name, Log(work / "log", name, quiet=True))
        found[name] = held_out_loss(model, tokenizer, shards, 100_000, world.device, knobs)["loss"]
        if name == "mean":
            last = work / name / "average" / f"step-{knobs.steps}-of-rank-0.safetensors"
            model.load_state_dict(load_file(last))
            found["anneal"] = held_out_loss(model, tokenizer, shards, 100_000, world.device, knobs)["loss"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--average", type=int, default=8, help="weights that the mean is taken of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as work:
            rows.append(losses(options.run, seed, options.tokens, options.average, Path(work)))
        print(f"seed {seed}: " + "  ".join(f"{name} {loss:.4f}" for name, loss in rows[-1].items()), flush=True)
    for name, other in (("anneal", "cosine"), ("mean", "anneal"), ("mean", "cosine")):
        change = np.array([row[name] - row[other] for row in rows])
        half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / np.sqrt(len(change))
        print(
            f"{name} - {other}: {change.mean():+.4f} ({change.mean() - half:+.4f} to {change.mean() + half:+.4f}) nats"
        )


if __name__ == "__main__":
    main()
