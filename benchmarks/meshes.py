"""Saves on each of six meshes and goes on in each of the six: 36 ordered pairs, of which six are of a mesh with itself.

    python benchmarks/meshes.py

Four processes on CPUs train a small model for four steps on each mesh, keep the checkpoint after the second, and go on
from each of these checkpoints in every mesh. For each pair: by how much the loss of the next step, a share of it,
differs from that of the run that was not interrupted; and of a mesh with itself, whether all weights are the same.
"""

import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from puna.log import Log
from puna.model.llama import PRESETS
from puna.model.weights import empty_model
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.train.batches import Batch
from puna.train.launch import World, launch
from puna.train.loop import train
from puna.train.losses import NextToken

MESHES = {
    "tp2 dp2": Layout(tp=2),
    "pp2 dp2": Layout(pp=2),
    "cp2 tp2": Layout(cp=2, tp=2),
    "pp2 tp2": Layout(pp=2, tp=2, schedule="interleaved", stages=2),
    "fsdp4": Layout(shard=4),
    "cp2 dp2": Layout(cp=2, shard=1),
}
CONFIG = replace(PRESETS["1m"], vocab_size=256, dim=64, layers=2, heads=4, kv_heads=2, ffn_dim=128)
STEPS, HALF, ROWS, SEQ_LEN = 4, 2, 4, 64


class RandomRows:
    """Rows of two documents each."""

    def __init__(self) -> None:
        shape = (STEPS * ROWS, SEQ_LEN + 1)
        self.tokens = torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(5))

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, numbers: Sequence[int]) -> Batch:
        tokens = self.tokens[list(numbers)]
        documents = (torch.arange(SEQ_LEN) >= 25).long().expand(len(tokens), SEQ_LEN)
        return Batch(tokens[:, :-1], tokens[:, 1:], documents)


def run(world: World, folder: Path, mesh: str) -> None:
    """Train to the end, from the checkpoint in folder/work if there is one; the last weights into folder/weights.pt."""
    knobs = {"seq_len": SEQ_LEN, "batch_rows": ROWS, "peak_lr": 1e-2, "warmup_steps": 2, "epsilon": 1e-4}
    knobs |= {"precision": "fp32", "compile": "off", "keep_every": HALF, "layout": MESHES[mesh]}
    model = empty_model(CONFIG)
    weights = model.draw_weights(torch.Generator().manual_seed(1))
    log, options = Log(folder / "log", "training", quiet=True), Training.model_validate(knobs)
    train(model, RandomRows(), NextToken(), options, world, folder / "work", log, "training", None, weights)
    if world.rank == 0:
        torch.save({name: weight.clone() for name, weight in model.state_dict().items()}, folder / "weights.pt")


def run_pairs(world: World, folder: Path) -> None:
    warnings.simplefilter("ignore")  # torch's, about itself
    for mesh in MESHES:
        run(world, folder / mesh, mesh)
    for begun in MESHES:
        for ended in MESHES:
            again = folder / begun / ended
            if world.rank == 0:
                name = f"step-{HALF:09d}"
                shutil.copytree(folder / begun / "work" / name, again / "work" / name)
            torch.distributed.barrier()
            run(world, again, ended)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log" / "training.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "weights.pt")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(run_pairs, 4, folder)
        worst, exact = 0.0, 0
        print(f"{'saved on':10}" + "".join(f"{mesh:>10}" for mesh in MESHES))
        for begun in MESHES:
            line = f"{begun:10}"
            for ended in MESHES:
                again, straight = losses(folder / begun / ended), losses(folder / begun)[HALF:]
                assert len(again) == len(straight), "it did not go on from the checkpoint"
                error = abs(again[0] / straight[0] - 1)
                worst = max(worst, error)
                line += f"{error:10.1e}"
                if begun == ended:
                    pairs = zip(weights(folder / begun / ended).values(), weights(folder / begun).values())
                    exact += again == straight and all(torch.equal(*pair) for pair in pairs)
            print(line)
    pairs = len(MESHES) * (len(MESHES) - 1)
    print(f"{pairs} pairs and {len(MESHES)} meshes with themselves: next loss off by {worst:.1e} at most;", end=" ")
    print(f"{exact} of {len(MESHES)} the same to the bit")
    sys.exit(worst > 1e-6 or exact < len(MESHES))


if __name__ == "__main__":
    main()
