"""Which models a sweep trains: real shapes on a ladder, and for each budget the few around its optimum.

Batch size follows the budget and the learning rate the size, as in section 3.2.1: power laws through points that the
recipe gives. Two smaller sweeps judge data by the same means: models of one size a budget for each candidate mix
(section 3.1.2), and half-trained models whose learning rate goes to 0 on a part of the corpus (section 3.1.3).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from puna.artifact import digest_of
from puna.errors import PunaError
from puna.model.llama import LlamaConfig, count_parameters, flops_per_token
from puna.recipe import Recipe, Scaling, Training
from puna.train.batches import Blend, rng

LARGEST_DIM = 32_768
SHAPE = ("dim", "layers", "heads", "kv_heads", "ffn_dim")
OPERATIONAL = ("micro_rows", "checkpoint_seconds", "keep_checkpoints", "processes")
"""Options of a run that change its loss by rounding at most, and are no reason to train it again."""


@dataclass(frozen=True)
class SweepRun:
    """One model to train, and all that its result depends on."""

    budget: float
    """FLOPs that it was planned for; `flops` is what its whole number of steps takes."""
    config: LlamaConfig
    steps: int
    options: Training
    blends: tuple[Blend, ...]
    max_epochs: float
    held_out_tokens: int
    seed: int
    source: dict[str, str]
    """The artifacts it reads, by digest."""
    purpose: str = "isoflop"
    """isoflop, mix:NAME, probe:PART, or probe: for the default mix that probes are compared with."""

    @property
    def params(self) -> int:
        return count_parameters(self.config)

    @property
    def tokens(self) -> int:
        return self.steps * self.options.batch_tokens

    @property
    def flops(self) -> int:
        """Forward and backward, attention included (puna/model/llama.py)."""
        return self.tokens * flops_per_token(self.config, self.options.seq_len)

    @property
    def name(self) -> str:
        """Its folder: budget and parameters, for a person, and the digest of everything, for a second run."""
        causes = asdict(self) | {"options": self.options.model_dump(exclude=set(OPERATIONAL))}
        return f"{self.budget:.3g}-{self.params}-{digest_of(causes)[:10]}".replace("+", "")

    def describe(self) -> dict[str, Any]:
        """A row of points.csv, without the result."""
        options, config = self.options, self.config
        return {
            "run": self.name,
            "purpose": self.purpose,
            "budget": self.budget,
            "params": self.params,
            "tokens": self.tokens,
            "flops": self.flops,
            "flops_6nd": 6 * self.params * self.tokens,
            **{name: getattr(config, name) for name in SHAPE},
            "steps": self.steps,
            "batch_tokens": options.batch_tokens,
            "peak_lr": options.peak_lr,
            "warmup_steps": options.warmup_steps,
            "seed": self.seed,
        }


def plan_runs(recipe: Recipe, vocab_size: int, source: dict[str, str]) -> list[SweepRun]:
    """The runs of a sweep in the order of points.csv: by budget, size and seed; then those of mixes and probes."""
    knobs = recipe.scaling
    make = partial(make_plan, recipe, source)
    budgets = sorted(knobs.budgets)
    drawn = [int(rng(recipe.seed, "scaling", number).integers(2**31)) for number in range(max(2, knobs.seeds))]
    seeds = drawn[: knobs.seeds]
    shapes_of = {budget: pick_shapes(knobs, budget, vocab_size) for budget in budgets}
    runs = [make(budget, shape, seed) for budget in budgets for shape in shapes_of[budget] for seed in seeds]
    middle = {budget: found[len(found) // 2] for budget, found in shapes_of.items()}
    for name, mix in knobs.mixes.items():
        purpose = f"mix:{name}"
        runs += [make(budget, middle[budget], seed, mix, purpose=purpose) for budget in budgets for seed in seeds]
    if knobs.probes:
        default, largest = recipe.pretrain.mix, budgets[-1]
        mixes = {"": default} | {part: probe_mix(default, part, knobs.probe_share) for part in knobs.probes}
        for part, mix in mixes.items():  # one seed would show no scatter
            purpose = f"probe:{part}"
            runs += [make(largest, middle[largest], seed, anneal=mix, purpose=purpose) for seed in drawn]
    return runs


def probe_mix(default: dict[str, float], part: str, share: float) -> dict[str, float]:
    """The candidate's share on top of the default mix."""
    mix = {name: (1 - share) * value for name, value in default.items()}
    return mix | {part: mix.get(part, 0.0) + share}


def make_plan(
    recipe: Recipe,
    source: dict[str, str],
    budget: float,
    config: LlamaConfig,
    seed: int,
    mix: dict[str, float] | None = None,
    anneal: dict[str, float] | None = None,
    purpose: str = "isoflop",
) -> SweepRun:
    """A model trained for as many whole steps as come nearest to the budget; with `anneal`, the second half on that
    mix, and the learning rate linear to 0."""
    knobs = recipe.scaling
    rows = max(1, round(power_law(knobs.batch_tokens, budget) / knobs.seq_len))
    steps = max(1, round(budget / (flops_per_token(config, knobs.seq_len) * rows * knobs.seq_len)))
    fitting = max(1, knobs.micro_tokens // knobs.seq_len)
    options = Training(  # pyright: ignore[reportCallIssue]
        seq_len=knobs.seq_len,
        batch_rows=rows,
        micro_rows=max(n for n in range(1, rows + 1) if rows % n == 0 and n <= fitting),
        peak_lr=float(f"{power_law(knobs.peak_lr, count_parameters(config)):.3g}"),
        warmup_steps=min(knobs.warmup_steps, round(knobs.warmup_share * steps)),
        schedule="linear" if anneal else "cosine",
        final_lr=0.0 if anneal else knobs.final_lr,
        weight_decay=knobs.weight_decay,
        precision=knobs.precision,
        compile=knobs.compile,
        processes=1,
        checkpoint_seconds=knobs.checkpoint_seconds,
        keep_checkpoints=1,
    )
    last = steps // 2 * rows if anneal else 0
    mix, weights = mix or recipe.pretrain.mix, recipe.pretrain.weights
    blends = [Blend(steps * rows - last, mix, weights), Blend(last, anneal or mix, weights)]
    return SweepRun(
        budget=budget,
        config=config,
        steps=steps,
        options=options,
        blends=tuple(blend for blend in blends if blend.rows),
        max_epochs=knobs.max_epochs,
        held_out_tokens=knobs.held_out_tokens,
        seed=seed,
        source=source,
        purpose=purpose,
    )


def pick_shapes(knobs: Scaling, budget: float, vocab_size: int) -> list[LlamaConfig]:
    """For a budget the shapes nearest to evenly spread ratios of tokens to parameters, the smallest model first."""
    least, most = sorted(knobs.tokens_per_parameter)
    targets = np.geomspace(most, least, knobs.sizes) if knobs.sizes > 1 else [math.sqrt(least * most)]
    ratios = {
        config: budget / flops_per_token(config, knobs.seq_len) / count_parameters(config)
        for config in shapes(vocab_size, knobs.seq_len)
    }
    picked: list[LlamaConfig] = []
    for target in targets:
        larger = [config for config in ratios if not picked or ratios[config] < ratios[picked[-1]]]
        nearest = min(larger, key=lambda config: abs(math.log(ratios[config] / target)))
        if abs(math.log(ratios[nearest] / target)) > math.log(3):
            raise PunaError(
                f"scaling.budgets: at {budget:g} FLOPs and a vocabulary of {vocab_size:,} no other model has about "
                f"{target:.3g} tokens a parameter (the next has {ratios[nearest]:.3g}); raise the budget, lower "
                f"scaling.sizes ({knobs.sizes}), or change scaling.tokens_per_parameter"
            )
        picked.append(nearest)
    return picked


@cache
def shapes(vocab_size: int, seq_len: int) -> tuple[LlamaConfig, ...]:
    """The ladder of shapes, ascending: ours, through the presets of puna/model/llama.py from 1m to 1b."""
    return tuple(_shape(dim, vocab_size, seq_len) for dim in _dims())


def _dims() -> Iterator[int]:
    """Whole heads, in steps of an eighth of the power of two below or more."""
    dim = 8
    while dim <= LARGEST_DIM:
        yield dim
        dim += 4 if dim < 32 else max(_head_dim(dim), 2 ** (dim.bit_length() - 4))


def _head_dim(dim: int) -> int:
    """The same for neighbours on the ladder: heads of 8 instead of 16 cost a model of 300,000 parameters 0.07 nats."""
    if dim < 32:
        return dim if dim < 16 else dim // 2
    return next(size for size, least in ((128, 2048), (64, 512), (32, 128), (16, 32)) if dim >= least)


def _shape(dim: int, vocab_size: int, seq_len: int) -> LlamaConfig:
    """Layers, FFN and heads grow with the dimension as they do in the presets; a key serves two queries or one, and
    more only where 8 keys are enough (one key for five queries cost 0.02 nats)."""
    heads = dim // _head_dim(dim)
    kv_heads = 8 if heads >= 16 and heads % 8 == 0 else heads // 2 if heads % 2 == 0 else heads
    return LlamaConfig(
        vocab_size,
        dim=dim,
        layers=max(1, round(4 * (dim / 128) ** 0.65)),
        heads=heads,
        kv_heads=kv_heads,
        ffn_dim=8 * round(dim / 3),
        max_seq_len=seq_len,
    )


def power_law(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at x of the power law through the points: linear between neighbours in logarithms, and beyond the ends
    as between the last two. One point is a constant."""
    known = sorted((math.log(at), math.log(value)) for at, value in points)
    if len(known) == 1:
        return math.exp(known[0][1])
    place = min(max(sum(at <= math.log(x) for at, _ in known), 1), len(known) - 1)
    (x0, y0), (x1, y1) = known[place - 1], known[place]
    return math.exp(y0 + (y1 - y0) * (math.log(x) - x0) / (x1 - x0))
