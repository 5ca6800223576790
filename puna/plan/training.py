"""The plan of a recipe's training: each stage's tokens, FLOPs, layout and time; then hours, cost, energy, failures."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from puna.errors import PunaError
from puna.model.llama import LlamaConfig, count_parameters, flops_per_token
from puna.plan.choose import Choice, choose
from puna.plan.layout import Job
from puna.plan.machines import Machine
from puna.plan.published import GPU_HOURS
from puna.plan.reliability import FAILURES_PER_GPU_DAY, RESTART_MINUTES, Reliability, reliability
from puna.plan.speed import step_volume
from puna.pretrain.pretrain import model_config
from puna.recipe import Recipe, Training

CHAT_TOKENS = 280
"""Tokens of a synthesized chat with its tools, measured on the tiny recipe."""


@dataclass(frozen=True)
class Settings:
    """What a plan assumes beside recipe and machine; each is an option of `puna plan`."""

    layout: dict[str, int | str] = field(default_factory=dict)
    """Of pretraining; what it leaves out is chosen."""
    fp8: bool = False
    tflops: float | None = None
    """TFLOP/s a processor as 6 N D, in place of the time model."""
    effective: float | None = None
    """Share of the time that trains, in place of what the failures give."""
    failures_per_gpu_day: float = FAILURES_PER_GPU_DAY
    restart_minutes: float = RESTART_MINUTES
    storage: float | None = None
    """Bytes a second that checkpoints are written with."""
    price_per_gpu_hour: float | None = None
    price_per_kwh: float | None = None
    pue: float = 1.1
    """Power of the building over that of the machines; the value is ours."""


@dataclass(frozen=True)
class StagePlan:
    """One training stage on its layout."""

    name: str
    job: Job
    tokens: float
    flops: float
    """With attention over the full square, as puna/model/llama.py counts."""
    flops_6nd: float
    choice: Choice
    binds: list[str]
    others: list[Choice]
    """What else fits, fastest first."""
    seconds: float
    """Of training alone, without interruptions."""

    @property
    def attention_share(self) -> float:
        return 1 - flops_per_token(self.job.config, 0) / flops_per_token(self.job.config, self.job.seq_len)

    def rate(self, flops: float) -> float:
        """FLOP/s of a processor."""
        return flops / self.seconds / self.choice.machine.count

    @property
    def flops_causal(self) -> float:
        """With half the square of attention, as causality needs."""
        return self.flops * (1 - self.attention_share / 2)


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    config: LlamaConfig
    machine: Machine
    settings: Settings
    stages: list[StagePlan]
    reliability: Reliability

    @property
    def effective(self) -> float:
        return self.settings.effective or self.reliability.effective

    @property
    def gpu_hours(self) -> float:
        return sum(s.seconds * s.choice.machine.count for s in self.stages) / 3600 / self.effective

    @property
    def days(self) -> float:
        return sum(s.seconds for s in self.stages) / 86_400 / self.effective

    @property
    def uncertainty(self) -> float:
        """Of the time, as a share. 15% holds for every published row that has no context parallelism (published.py),
        50% for most that have; ours are 30% where the share of the peak is assumed, 20% where it was measured."""
        if self.settings.tflops:
            return 0.0
        if self.machine.processor.source.startswith("measured"):
            return 0.20
        if self.stages[0].choice.layout.cp > 1:
            return 0.50
        return 0.15 if self.machine.processor.source.startswith("fitted") else 0.30

    @property
    def kwh(self) -> float | None:
        """Of the processors at their design power, times the PUE; hosts, network and storage are not in it."""
        watts = self.machine.processor.watts
        return None if watts is None else watts / 1000 * self.gpu_hours * self.settings.pue


def make_plan(recipe: Recipe, machine: Machine, settings: Settings | None = None) -> Plan:
    """Arithmetic only: no data is read and no model built."""
    settings = settings or Settings()
    if settings.fp8 and not machine.processor.fp8:
        raise PunaError(f"precision fp8: a {machine.processor.name} has no FP8 products; use bf16")
    if settings.effective is not None and not 0 < settings.effective <= 1:
        raise PunaError(f"effective = {settings.effective:g}: a share above 0 and up to 1 is needed")
    if not recipe.pretrain.tokens:
        raise PunaError("pretrain.tokens = 0: the planner counts from pretraining on; `--serve` needs no training")
    config = model_config(recipe.model, recipe.tokenizer.vocab_size)
    stages = [
        _stage(name, config, machine, settings, *work, settings.layout if name == "pretrain" else {})
        for name, work in stage_tokens(recipe)
    ]
    faults = reliability(
        count_parameters(config),
        stages[0].choice.machine.count,
        stages[0].seconds,
        settings.failures_per_gpu_day,
        settings.storage,
        settings.restart_minutes,
    )
    return Plan(recipe, config, machine, settings, stages, faults)


def _stage(
    name: str,
    config: LlamaConfig,
    machine: Machine,
    settings: Settings,
    knobs: Training,
    tokens: float,
    passes: float,
    given: dict[str, int | str],
) -> StagePlan:
    if machine.processor.mfu is not None:  # measured data-parallel, as puna's loop runs
        given = {"tp": 1, "cp": 1, "pp": 1, "micro": knobs.micro_rows, "recompute": "none", "shard": 0} | given
    job = Job(config, knobs.seq_len, knobs.batch_rows, fp8=settings.fp8)
    found = choose(job, machine, given)
    flops_6nd = 6.0 * count_parameters(config) * tokens * passes
    flops = tokens * flops_per_token(config, knobs.seq_len) * passes
    seconds = found.best.step.seconds * tokens / job.batch_tokens * passes
    if settings.tflops:
        seconds = flops_6nd / (settings.tflops * 1e12 * found.best.machine.count)
    return StagePlan(name, job, tokens, flops, flops_6nd, found.best, found.binds, found.others, seconds)


def stage_tokens(recipe: Recipe) -> Iterator[tuple[str, tuple[Training, float, float]]]:
    """Each training stage: its knobs, its tokens, and its passes over them in units of forward and backward."""
    made = recipe.synthesize
    chats = (made.tool_chats + made.plain_chats + made.question_chats) * CHAT_TOKENS
    pairs = made.preference_problems * recipe.dpo.pairs_per_problem
    yield "pretrain", (recipe.pretrain, recipe.pretrain.trained_tokens, 1.0)
    yield "sft", (recipe.sft, chats * recipe.sft.epochs, 1.0)
    # at most: every problem gives its pairs, and the reference model reads them once, forward only
    yield "dpo", (recipe.dpo, pairs * recipe.dpo.seq_len * recipe.dpo.epochs, 4 / 3)


def published_hours(plan: Plan) -> tuple[str, float, float, float] | None:
    """For a model of the paper's: its preset, the published tokens and H100 hours, and the TFLOP/s (6 N D) they imply
    if the tokens are right."""
    preset = plan.recipe.model.name
    short = plan.recipe.pretrain.seq_len <= 8192  # as the hours were spent, but for the long-context stage
    if preset not in GPU_HOURS or plan.recipe.model.overrides or plan.machine.processor.name != "H100" or not short:
        return None
    tokens, hours = GPU_HOURS[preset]
    return preset, tokens, hours, 6 * count_parameters(plan.config) * tokens / (hours * 3600) / 1e12


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole plan as one object: bytes, seconds, FLOPs unless a name says otherwise."""
    settings, hours = plan.settings, plan.gpu_hours
    published = published_hours(plan)
    return {
        "recipe": plan.recipe.name,
        "machine": plan.machine.name,
        "processors": plan.machine.count,
        "processor": dataclasses.asdict(plan.machine.processor),
        "parameters": count_parameters(plan.config),
        "settings": dataclasses.asdict(settings),
        "stages": [_stage_json(stage) for stage in plan.stages],
        "gpu_hours": hours,
        "days": plan.days,
        "uncertainty": plan.uncertainty,
        "effective_time": plan.effective,
        "reliability": {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(plan.reliability).items()},
        "price_gpus": settings.price_per_gpu_hour and settings.price_per_gpu_hour * hours,
        "kwh": plan.kwh,
        "price_energy": settings.price_per_kwh and plan.kwh and settings.price_per_kwh * plan.kwh,
        "model_bytes_bf16": 2 * count_parameters(plan.config),
        "published": published and dict(zip(("preset", "tokens", "gpu_hours", "implied_tflops_6nd"), published)),
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    choice, layout = stage.choice, stage.choice.layout
    return {
        "stage": stage.name,
        "tokens": stage.tokens,
        "flops": stage.flops,
        "flops_6nd": stage.flops_6nd,
        "attention_share": stage.attention_share,
        "layout": dataclasses.asdict(layout),
        "processors": choice.machine.count,
        "batch_tokens": stage.job.batch_tokens,
        "micro_batches": layout.micro_batches(stage.job),
        "bubble": layout.bubble(stage.job),
        "fits": choice.fits,
        "memory": {
            **dataclasses.asdict(choice.memory),
            "needed": choice.need,
            "there": choice.machine.processor.memory,
        },
        "step_seconds": dataclasses.asdict(choice.step),
        "received_bytes_per_step": dataclasses.asdict(step_volume(stage.job, layout)),
        "tflops": {
            "6nd": stage.rate(stage.flops_6nd) / 1e12,
            "causal": stage.rate(stage.flops_causal) / 1e12,
            "full": stage.rate(stage.flops) / 1e12,
        },
        "mfu": stage.rate(stage.flops) / choice.machine.processor.bf16,
        "seconds": stage.seconds,
        "binds": stage.binds,
        "others": [
            {**dataclasses.asdict(c.layout), "memory_needed": c.need, "step_seconds": c.step.seconds}
            for c in stage.others
        ],
    }
