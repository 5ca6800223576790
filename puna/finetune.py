"""`puna finetune`: SFT on chats, and DPO on preferences, from a model that is there already.

The recipe of such a run has nothing to make a corpus or a base model of; all else is as in every other.
"""

import copy
from pathlib import Path
from typing import Annotated, Any

import typer

from puna.errors import PunaError
from puna.log import console
from puna.model.start import start_folder
from puna.recipe import apply_override, parse_recipe
from puna.run import Run

TRAINING = {"seq_len": 2048, "batch_rows": 8, "warmup_steps": 10, "lora": {"rank": 16}}
KNOBS: dict[str, dict[str, Any]] = {
    "pretrain": {"tokens": 0},
    "chats": {"only": True},
    "sft": TRAINING | {"peak_lr": 2e-4},
    "dpo": TRAINING | {"peak_lr": 5e-5},
}
"""What differs from the defaults, ours: adapters of rank 16 at ten times a full finetuning's learning rate."""


def finetune(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model directory, in Hugging Face's form or Meta's.")
    ],
    words: Annotated[
        list[str],
        typer.Argument(metavar="FILE ... [key.path=value ...]", help="Chats and preferences, as JSONL; overrides."),
    ],
    name: Annotated[str, typer.Option(help="The run lives in runs/NAME.")] = "finetuned",
) -> None:
    """Finetune a Llama on your own chats and preferences, by adapters unless sft.lora.rank=0 says otherwise."""
    from puna.cli import split_words, tell_stage, write_report

    files = [word for word in words if "=" not in word or Path(word).exists()]
    _, overrides = split_words([word for word in words if word not in files])
    if not files:
        raise PunaError("puna finetune needs chats: puna finetune MODEL my-chats.jsonl")
    given: dict[str, Any] = {"model": {"start": str(start_folder(str(model)).resolve())}, "name": name}
    data = copy.deepcopy(KNOBS | given)
    data["chats"]["sources"] = files
    for override in overrides:
        apply_override(data, override)
    job = Run(parse_recipe(data, "puna finetune"))
    console.print(f"[bold]{job.recipe.name}[/] in {job.folder}/")
    job.run(["chats"], tell_stage)
    counts = job.metrics()
    if not counts["chats.kept"]["value"]:
        raise PunaError("there are preferences, but no chats, and DPO comes after SFT; add chats of the same kind")
    job.run(["dpo" if counts["chats.preferences"]["value"] else "sft"], tell_stage)
    console.print(f"report: {write_report(job)}\ntalk to it: puna chat {job.folder}")
