"""The pretraining stage: next-token prediction on the mixed shards (section 3.4)."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from puna.errors import PunaError
from puna.log import Log
from puna.model.licence import carry_licences
from puna.model.llama import PRESETS, Llama, LlamaConfig, count_parameters
from puna.model.start import load_start, read_start_config, start_folder
from puna.model.weights import empty_model, read_config
from puna.recipe import Model, Pretrain, Recipe
from puna.run import figure, work_folder
from puna.text.needle import NeedleMaker
from puna.text.tokenizer import Tokenizer
from puna.train.average import WeightAverage
from puna.train.batches import Shards, blends_of
from puna.train.haystacks import Haystacks
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train, use_compile
from puna.train.losses import NextToken
from puna.train.save import save_model


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Shards and tokenizer -> a base model, as a Hugging Face directory."""
    start = recipe.model.start
    if start:
        carry_licences([start_folder(start)], out)
    metrics = {"pretrain.tokens": figure(recipe.pretrain.trained_tokens, "tokens")}
    if start and not recipe.pretrain.tokens:
        log.message(f"takes {start} as it is")
        save_model(load_start(start), Tokenizer.load(inputs["tokenizer"]), out, chat=False)
    else:
        launch(_train, count_processes(recipe.pretrain), recipe, inputs, out, log)
        metrics["pretrain.loss"] = figure(round(log.last("loss", 50), 4), "nats/token")
    return metrics | {"pretrain.parameters": figure(count_parameters(read_config(out)))}


def model_config(knobs: Model, vocab_size: int) -> LlamaConfig:
    """The preset with the recipe's overrides, or the sizes of the model to start from; PunaError for an unknown preset
    or sizes that do not fit."""
    if knobs.start:
        return read_start_config(knobs.start)
    if knobs.preset not in PRESETS:
        raise PunaError(f"model.preset = {knobs.preset!r} is not known; the presets are {', '.join(PRESETS)}")
    return dataclasses.replace(PRESETS[knobs.preset], vocab_size=vocab_size, **knobs.overrides)


def _train(world: World, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> None:
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    weights = None
    if recipe.model.start:
        model = load_start(recipe.model.start)
    else:
        model = empty_model(model_config(recipe.model, tokenizer.vocab_size))
        weights = model.draw_weights(torch.Generator().manual_seed(recipe.seed))
    work = work_folder(out)
    train_on(inputs["shards"], model, tokenizer, recipe.pretrain, recipe.seed, world, work, log, weights=weights)
    if world.rank == 0:
        save_model(model, tokenizer, out, chat=False)


def train_on(
    shards: Path,
    model: Llama,
    tokenizer: Tokenizer,
    knobs: Pretrain,
    seed: int,
    world: World,
    work: Path,
    log: Log,
    name: str = "pretraining",
    weights: Iterable[tuple[str, torch.Tensor]] | None = None,
) -> None:
    """Train the model on the shards as the knobs say; it ends with the mean of its weights where they ask for that.
    `weights` are for a model without memory. Afterwards the process of rank 0 has the whole model."""
    batches = Shards(
        shards,
        blends_of(knobs),
        knobs.seq_len,
        knobs.max_epochs,
        tokenizer.bos_id,
        seed,
        stretches=knobs.stretches(0),
    )
    if knobs.needle_share:
        batches = Haystacks(batches, NeedleMaker(tokenizer), knobs.needle_share, seed)
    average = None
    if knobs.average:
        average = WeightAverage(work / "average", world.rank, knobs.steps, knobs.anneal_steps, knobs.average)
    loss = NextToken(use_compile(knobs, world.device), batches.sources)
    train(model, batches, loss, knobs, world, work, log, name, average, weights)
