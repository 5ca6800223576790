"""What a larger teacher gives a smaller student: SFT on a teacher's verified calls beside SFT without them.

    python benchmarks/teacher.py runs/tiny-rounds [--tokens N] [--seeds N]

The teacher is what the run's rounds made. The student is a smaller model, pretrained here on the run's shards. The
teacher answers the run's problems, calls are executed, and the first right answers are what the student learns, beside
the chats that the rounds began with; the other student learns those chats alone, with as many tokens. Both are asked
held-out problems: right first messages, and whole problems solved, greedily. Intervals are over problems of all seeds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from puna.log import Log
from puna.posttrain import sft
from puna.posttrain.chats import read_jsonl
from puna.posttrain.measure import Marks, measure
from puna.posttrain.sample import chats_of, draw
from puna.pretrain import pretrain
from puna.recipe import Recipe, load_recipe
from puna.score import change, proportion
from puna.text.tokenizer import Tokenizer

STUDENT = {"dim": 64, "layers": 3, "heads": 2, "kv_heads": 1, "ffn_dim": 176}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a whole run with rounds")
    parser.add_argument("--tokens", type=int, default=2_500_000, help="that the student is pretrained on")
    parser.add_argument("--problems", type=int, default=2000, help="held-out problems that students are measured on")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    run, recipe = options.run, load_recipe(options.run / "recipe.toml")
    first = run / "synthesize" / "call_sft.jsonl"
    problems = list(read_jsonl(run / "synthesize" / "call_held_out.jsonl"))[: options.problems]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = Log(folder, "marks", quiet=True)

        def marks(model: Path, seed: int) -> Marks:
            found = measure(model, problems, recipe.posttrain, seed, log, greedy=True)
            return {name: found[name] for name in ("first", "solved")}

        chats = taught(recipe, run / "rounds", run / "synthesize", folder)
        show("teacher", teacher := marks(run / "rounds", recipe.seed))
        students: dict[str, list[Marks]] = {"with the teacher": [], "without": []}
        for seed in range(options.seeds):
            base = student(recipe, run, options.tokens, seed, folder / f"student {seed}")
            rows = None
            for (who, found), files in zip(students.items(), ([first, chats], [first])):
                model, rows = train(recipe, base, files, seed, rows, folder / f"{who} {seed}")
                found.append(marks(model, seed))
                show(f"seed {seed} {who}", found[-1])
    together = {
        who: {name: np.concatenate([each[name] for each in found]) for name in teacher}
        for who, found in students.items()
    }
    for who, found in together.items():
        show(who, found)
    for name in teacher:
        print(f"gain, {name}: {shown(change(together['without'][name], together['with the teacher'][name]))}")


def show(who: str, marks: Marks) -> None:
    print(f"{who}: " + "  ".join(f"{name} {shown(proportion(each))}" for name, each in marks.items()), flush=True)


def taught(recipe: Recipe, teacher: Path, data: Path, folder: Path) -> Path:
    """The file of chats that the teacher's first right answers make."""
    log = Log(folder / "teacher", "draw", quiet=True)
    prompts = list(read_jsonl(data / "call_prompts.jsonl"))
    drawn = draw(teacher, prompts, recipe.posttrain, recipe.seed, log)
    chats = chats_of(prompts, drawn, Tokenizer.load(teacher), recipe.posttrain.problems_per_chat)
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats), encoding="utf-8")
    return path


def student(recipe: Recipe, run: Path, tokens: int, seed: int, folder: Path) -> Path:
    """The folder of a small base model."""
    small = recipe.model_copy(
        update={
            "seed": seed,
            "model": recipe.model.model_copy(update=STUDENT),
            "pretrain": recipe.pretrain.model_copy(update={"tokens": tokens}),
        }
    )
    inputs = {"tokenizer": run / "tokenizer", "shards": run / "shards"}
    pretrain.run(small, inputs, *places(folder))
    return folder / "out"


def train(recipe: Recipe, base: Path, chats: list[Path], seed: int, rows: int | None, folder: Path) -> tuple[Path, int]:
    """The folder of a student after SFT on chats, for so many rows or all epochs; and how many rows that were."""
    metrics = sft.fit(recipe.sft, seed, base, chats, *places(folder), rows)
    return folder / "out", metrics["sft.tokens"]["value"] // recipe.sft.seq_len


def places(folder: Path) -> tuple[Path, Log]:
    """The folder of what is made, beside its checkpoints, and its log."""
    (folder / "work").mkdir(parents=True)
    (folder / "out").mkdir()
    return folder / "out", Log(folder, "train", quiet=True)


def shown(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


if __name__ == "__main__":
    main()
