"""Supervised finetuning: cross-entropy on the assistant's tokens only (section 4.1.3)."""

from pathlib import Path
from typing import Any

import torch

from puna.log import Log
from puna.model.weights import load_hf
from puna.posttrain.chats import read_chats
from puna.recipe import Recipe
from puna.run import figure, work_folder
from puna.text.tokenizer import Tokenizer
from puna.train.batches import PackedChats
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken
from puna.train.save import save_model


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Base model and chats -> a chat model."""
    launch(_train, count_processes(recipe.sft), recipe, inputs, out, log)
    return {"sft.loss": figure(round(log.last("loss", 20), 4), "nats/token")}


def _train(world: World, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> None:
    knobs = recipe.sft
    tokenizer = Tokenizer.load(inputs["pretrain"])
    chats = read_chats(inputs["synthesize"] / "sft.jsonl", tokenizer)
    batches = PackedChats(chats, knobs.seq_len, tokenizer.pad_id, knobs.epochs, recipe.seed)
    if world.rank == 0:
        log.message(f"{len(batches.chats):,} chats in {len(batches.bins):,} rows; {batches.too_long} too long for one")
    model = load_hf(inputs["pretrain"], dtype=torch.float32)
    loss = NextToken(compiled=use_compile(knobs, world.device))
    train(model, batches, loss, knobs, world, work_folder(out), log, "SFT")
    if world.rank == 0:
        save_model(model, tokenizer, out)
