"""Supervised finetuning: cross-entropy on the assistant's tokens only (section 4.1.3)."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from puna.log import Log
from puna.model.lora import add_adapters, finish_adapters
from puna.model.weights import load_hf
from puna.posttrain.chats import read_chats, trained_tokens
from puna.recipe import Recipe, Sft
from puna.run import figure, work_folder
from puna.text.tokenizer import Tokenizer
from puna.train.batches import Batch, PackedChats
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken
from puna.train.save import save_model


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Base model and chats -> a chat model."""
    files = {"synthesize": "sft.jsonl", "chats": "chats.jsonl"}
    chats = [inputs[stage] / name for stage, name in files.items() if stage in inputs]
    return fit(recipe.sft, recipe.seed, inputs["pretrain"], chats, out, log)


def fit(
    knobs: Sft, seed: int, base: Path, chats: Sequence[Path], out: Path, log: Log, rows: int | None = None
) -> dict[str, Any]:
    """A model and files of chats -> a chat model, after `knobs.epochs` of them or exactly so many `rows`."""
    launch(_train, count_processes(knobs), knobs, seed, base, list(chats), out, log, rows)
    return {
        "sft.loss": figure(round(log.last("loss", 20), 4), "nats/token"),
        "sft.tokens": figure(trained_tokens(knobs, log)),
    }


def _train(
    world: World, knobs: Sft, seed: int, base: Path, files: list[Path], out: Path, log: Log, rows: int | None
) -> None:
    tokenizer = Tokenizer.load(base)
    chats = [chat for file in files for chat in read_chats(file, tokenizer, knobs.weights, seed)]
    batches = PackedChats(chats, knobs.seq_len, tokenizer.pad_id, knobs.epochs, seed)
    if rows is not None:
        epochs = ceil(rows / len(batches.bins))
        batches = First(PackedChats(chats, knobs.seq_len, tokenizer.pad_id, epochs, seed), rows)
    if world.rank == 0:
        log.message(f"{len(batches.chats):,} chats in {len(batches.bins):,} rows; {batches.too_long} too long for one")
    model = add_adapters(load_hf(base), knobs.lora, seed)
    loss = NextToken(compiled=use_compile(knobs, world.device))
    train(model, batches, loss, knobs, world, work_folder(out), log, "SFT")
    if world.rank == 0:
        save_model(finish_adapters(model, knobs.lora, out / "adapter"), tokenizer, out)


class First:
    """The first so many rows of batches."""

    def __init__(self, batches: PackedChats, rows: int) -> None:
        self._batches, self._rows = batches, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)

    def __len__(self) -> int:
        return self._rows

    def rows(self, numbers: Sequence[int]) -> Batch:
        return self._batches.rows(numbers)
