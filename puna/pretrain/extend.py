"""The long-context stage: the pretrained model learns longer and longer rows, and goes on to the next length only when
it has passed the gate of this one (section 3.4.2); then it is annealed (section 3.4.3).

The gate of a length: needles are found there, and the loss in short rows is what it was before. Where a model fails
at it after all attempts, the run stops and says why; what it has learnt stays in the work folder, so with more
`extend.attempts` it goes on from there. needles.json tells what was found before and after each stage.
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from puna.errors import PunaError
from puna.infer.needle import find_needles
from puna.log import Log
from puna.machine import training_dtype
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.pretrain.pretrain import train_on
from puna.recipe import Pretrain, Recipe
from puna.run import figure, work_folder, write_text
from puna.score import proportion
from puna.text.needle import NeedleMaker
from puna.text.tokenizer import Tokenizer
from puna.train.batches import read_tokens, rng
from puna.train.held_out import held_out_loss
from puna.train.launch import World, count_processes, launch
from puna.train.save import save_model


@dataclass(frozen=True)
class Examination:
    """What a model finds and how well it reads short rows, at one point of the stage."""

    name: str
    """`before`, LENGTH-ATTEMPT or `anneal`."""
    after: int
    """The length it was trained on last, in tokens."""
    loss: float
    """Nats a token in held-out rows of `pretrain.seq_len`."""
    found: dict[str, list[int]]
    """Of each length: the needles found at each depth."""

    def share(self, length: int, haystacks: int) -> float:
        """The share of the needles found at a length."""
        return sum(self.found[str(length)]) / (len(self.found[str(length)]) * haystacks)


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """A base model of a short context -> the same of a long one."""
    lengths = recipe.extend.lengths
    if not lengths or lengths[0] <= recipe.pretrain.seq_len:
        raise PunaError(
            f"extend.lengths = {lengths} must begin above pretrain.seq_len = {recipe.pretrain.seq_len}; "
            "the paper goes from 8,192 to 131,072 in six stages"
        )
    rows = math.gcd(*(stage_knobs(recipe, length).batch_rows for length in lengths))
    smallest = stage_knobs(recipe, lengths[0]).model_copy(update={"batch_rows": rows})
    launch(_extend, count_processes(smallest), recipe, inputs, out, log)
    return metrics(json.loads((out / "needles.json").read_text()))


def stage_knobs(recipe: Recipe, length: int) -> Pretrain:
    """How one length is trained, up to its gate: as in pretraining, but for what [extend] says."""
    knobs = recipe.extend
    return recipe.pretrain.model_copy(
        update={
            "seq_len": length,
            "batch_rows": max(1, knobs.batch_tokens // length),
            "micro_rows": 1,
            "tokens": knobs.tokens,
            "ramp": [],
            "peak_lr": knobs.peak_lr,
            "warmup_steps": knobs.warmup_steps,
            "schedule": "linear",
            "final_lr": knobs.final_lr,
            "needle_share": knobs.needle_share,
            "compile": knobs.compile,
            "anneal_tokens": 0,
            "average": 0,
        }
    )


def anneal_knobs(recipe: Recipe) -> Pretrain:
    """How the anneal is trained: in rows of the last length, with a learning rate that falls from the stages' last to
    zero."""
    knobs = recipe.extend
    rate = {"peak_lr": knobs.peak_lr * knobs.final_lr, "final_lr": 1.0, "warmup_steps": 0}
    mixed = {"anneal_mix": knobs.anneal_mix, "average": knobs.average}
    tokens = {"tokens": knobs.anneal_tokens, "anneal_tokens": knobs.anneal_tokens}
    return stage_knobs(recipe, knobs.lengths[-1]).model_copy(update=tokens | rate | mixed)


class Examiner:
    """Examines models of one recipe on the same held-out text. Processes share the haystacks."""

    def __init__(self, world: World, recipe: Recipe, shards: Path, tokenizer: Tokenizer) -> None:
        self.world, self.recipe, self.shards, self.tokenizer = world, recipe, shards, tokenizer
        self.needles = NeedleMaker(tokenizer)
        self.text = read_tokens(shards, "held_out")
        self.lengths = [recipe.pretrain.seq_len, *recipe.extend.lengths]

    def __call__(self, model: Llama, name: str, after: int, longest: int, gate: float = 0.0) -> Examination:
        """The model's needles at every length up to `longest`, and its loss in short rows. One that finds less than
        `gate` of them in the length that it was trained on last is not asked for those of others."""
        knobs, options = self.recipe.extend, self.recipe.pretrain
        found = {str(after): self._find(model, after)}
        loss = held_out_loss(model, self.tokenizer, self.shards, knobs.held_out_tokens, self.world.device, options)
        examination = Examination(name, after, loss["loss"], found)
        if examination.share(after, knobs.haystacks) >= gate:
            others = (length for length in self.lengths if length <= longest and length != after)
            found |= {str(length): self._find(model, length) for length in others}
        return replace(examination, found={length: found[length] for length in sorted(found, key=int)})

    def _find(self, model: Llama, length: int) -> list[int]:
        """How many needles are found at each depth."""
        knobs, mine = self.recipe.extend, range(self.world.rank, self.recipe.extend.haystacks, self.world.size)
        dtype = training_dtype(self.recipe.pretrain, self.world.device)
        seen = find_needles(model, self.needles, self.text, length, knobs.depths, mine, dtype, self.recipe.seed)
        counts = torch.from_numpy(seen.sum(0)).float().to(self.world.device)
        return [int(count) for count in self.world.sum(counts).tolist()]

    def failure(self, before: Examination, now: Examination) -> str | None:
        """Why the model must not go on from the length that it was trained on last; None when it may."""
        knobs = self.recipe.extend
        found = now.share(now.after, knobs.haystacks)
        reasons = []
        if found < knobs.needle_gate:
            missed = [f"{depth:.0%}" for depth, right in zip(np.linspace(0, 1, knobs.depths), now.found[str(now.after)])
                      if right < knobs.haystacks]  # fmt: skip
            reasons.append(
                f"{found:.1%} of the needles are found (needle_gate {knobs.needle_gate:.1%}), missed ones lie at "
                f"{', '.join(missed)} of the text"
            )
        if now.loss > before.loss * (1 + knobs.short_gate):
            reasons.append(
                f"the loss in rows of {self.recipe.pretrain.seq_len:,} tokens is {now.loss:.4f} and was "
                f"{before.loss:.4f} (short_gate {knobs.short_gate:.1%})"
            )
        return "; ".join(reasons) or None


def _extend(world: World, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> None:
    knobs, work = recipe.extend, work_folder(out)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    base = load_hf(inputs["pretrain"], dtype=torch.float32)
    newest: dict[str, torch.Tensor] = base.state_dict()
    examine = Examiner(world, recipe, inputs["shards"], tokenizer)

    def step(name: str, after: int, longest: int, options: Pretrain | None, gate: float = 0.0) -> Examination:
        """Train where there are options, examine, and remember both; after a restart only recall them."""
        nonlocal newest
        folder = work / name
        folder.mkdir(exist_ok=True)
        model, trained = Llama(base.config), folder / "weights.safetensors"
        if options and not trained.exists():
            model.load_state_dict(newest)
            seed = int(rng(recipe.seed, "extend", name).integers(2**31))
            own, place = log.part(f"extend-{name}"), folder / "training"
            train_on(inputs["shards"], model, tokenizer, options, seed, world, place, own, f"extending, {name}")
            if world.rank == 0:
                save_file({name: weight.cpu() for name, weight in model.state_dict().items()}, folder / "aside")
                (folder / "aside").rename(trained)
                shutil.rmtree(place, ignore_errors=True)
            world.sum(torch.zeros(1, device=world.device))  # all wait for the file
        if options:
            newest = load_file(trained)
        model.load_state_dict(newest)
        told = folder / "examination.json"
        if not told.exists():
            result = examine(model.to(world.device).eval(), name, after, longest, gate)
            if world.rank == 0:
                write_text(told, json.dumps(asdict(result)))
                shown = "  ".join(
                    f"{length}: {result.share(int(length), knobs.haystacks):.0%}" for length in result.found
                )
                log.message(f"{name}: short loss {result.loss:.4f}, needles {shown}")
            world.sum(torch.zeros(1, device=world.device))
        return Examination(**json.loads(told.read_text()))

    before = step("before", recipe.pretrain.seq_len, knobs.lengths[-1], None)
    examinations = [before]
    failure = None
    for number, length in enumerate(knobs.lengths):
        longest = knobs.lengths[min(number + 1, len(knobs.lengths) - 1)]
        for attempt in range(1, knobs.attempts + 1):
            options = stage_knobs(recipe, length)
            examinations.append(step(f"{length}-{attempt}", length, longest, options, knobs.needle_gate))
            if (failure := examine.failure(before, examinations[-1])) is None:
                break
        else:
            raise PunaError(
                f"extend: stage {number + 1} of {len(knobs.lengths)} ({length:,} tokens) is not passed after "
                f"{knobs.attempts} attempts: {failure}; raise extend.attempts or extend.tokens, or lower extend.peak_lr"
            )
    if knobs.anneal_tokens:
        examinations.append(step("anneal", knobs.lengths[-1], knobs.lengths[-1], anneal_knobs(recipe)))
    if world.rank == 0:
        report = {
            "seq_len": recipe.pretrain.seq_len,
            "haystacks": knobs.haystacks,
            "examinations": [asdict(each) for each in examinations],
        }
        write_text(out / "needles.json", json.dumps(report, indent=1) + "\n")
        base.load_state_dict(newest)
        save_model(base, tokenizer, out, chat=False)


def metrics(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of needles.json: needles at every length before and after, and the loss in short rows."""
    first, last = report["examinations"][0], report["examinations"][-1]
    found = {}
    for name, examination in (("before", first), ("after", last)):
        found[f"extend.loss.short.{name}"] = figure(round(examination["loss"], 4), "nats/token")
        for length, counts in examination["found"].items():
            n = report["haystacks"] * len(counts)
            found[f"extend.needles.{length}.{name}"] = proportion(np.arange(n) < sum(counts))
    return found
