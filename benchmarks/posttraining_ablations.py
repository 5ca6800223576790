"""What DPO's parts are for: the same model and preferences with and without the mask and the likelihood term; and the
average of what several orders of the data make.

    python benchmarks/posttraining_ablations.py runs/tiny-rounds [--problems 1000] [--seeds 3] [--only "DPO" ...]

DPO begins with the model before the rounds and learns the preferences of the first round. Every variant is measured on
held-out problems: first messages right at temperature 1, problems solved greedily, messages that end by themselves and
messages that say something three times in a row, each with its 95% interval.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.log import Log
from puna.posttrain import dpo
from puna.posttrain.average import average
from puna.posttrain.chats import read_jsonl
from puna.posttrain.measure import measure
from puna.recipe import Recipe, load_recipe
from puna.score import proportion

VARIANTS: dict[str, dict[str, Any] | None] = {
    "no DPO": None,
    "DPO": {},
    "without the mask": {"mask_format": False},
    "without the likelihood": {"nll": 0.0},
    "without both": {"mask_format": False, "nll": 0.0},
}
MEASURED = (("first", False), ("solved", True), ("finished", False), ("repeats", False))
"""Figures, and whether they are of greedy answers."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a whole run with rounds")
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1, help="orders of the data; with two or more, their average too")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.run / "recipe.toml")
    start, pairs = arguments.run / "rounds" / "start", arguments.run / "rounds" / "pairs.jsonl"
    problems = list(read_jsonl(arguments.run / "synthesize" / "call_held_out.jsonl"))[: arguments.problems]
    print("| variant | right first messages, T = 1 | solved, greedy | ended | repeated |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:

        def show(name: str, models: Sequence[Path]) -> None:
            log = Log(Path(folder), "marks", quiet=True)
            found = [marks(recipe, model, problems, seed, log) for seed, model in enumerate(models)]
            columns = (shown(np.concatenate([each[column] for each in found])) for column, _ in MEASURED)
            print(f"| {name} | " + " | ".join(columns) + " |", flush=True)

        for name in arguments.only:
            changes = VARIANTS[name]
            if changes is None:
                show(name, [start])
                continue
            folders = [Path(folder) / f"{name} {seed}" for seed in range(arguments.seeds)]
            models = [train(recipe, changes, seed, start, pairs, each) for seed, each in enumerate(folders)]
            show(name, models)
            if len(models) > 1:
                average(models, mean := Path(folder) / f"{name} averaged")
                show(f"{name}, averaged", [mean])


def train(recipe: Recipe, changes: dict[str, Any], seed: int, start: Path, pairs: Path, folder: Path) -> Path:
    """The folder of a model after DPO."""
    (folder / "work").mkdir(parents=True)
    (folder / "out").mkdir()
    dpo.fit(recipe.dpo.model_copy(update=changes), seed, start, pairs, folder / "out", Log(folder, "dpo", quiet=True))
    return folder / "out"


def marks(recipe: Recipe, model: Path, problems: list[dict[str, Any]], seed: int, log: Log) -> dict[str, np.ndarray]:
    found = {greedy: measure(model, problems, recipe.posttrain, seed, log, greedy) for greedy in (False, True)}
    return {name: found[greedy][name] for name, greedy in MEASURED}


def shown(values: np.ndarray) -> str:
    each = proportion(values)
    return f"{each['value']:.3f} ({each['low']:.3f}-{each['high']:.3f})"


if __name__ == "__main__":
    main()
