"""Which models a sweep trains: real shapes on a ladder, and for each budget the few around its optimum.

Batch size follows the budget and the learning rate the size, as in section 3.2.1: power laws through points that the
recipe gives.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from puna.errors import PunaError
from puna.model.llama import LlamaConfig, count_parameters, flops_per_token
from puna.recipe import Recipe, Scaling, Training
from puna.train.batches import rng

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
    mix: dict[str, float]
    weights: dict[str, float]
    max_epochs: float
    held_out_tokens: int
    seed: int
    source: dict[str, str]
    """The artifacts it reads, by digest."""

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
        digest = hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()
        return f"{self.budget:.3g}-{self.params}-{digest[:10]}".replace("+", "")

    def describe(self) -> dict[str, Any]:
        """A row of points.csv, without the result."""
        options, config = self.options, self.config
        return {
            "run": self.name,
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
    """The runs of a sweep in the order of points.csv: by budget, size and seed."""
    knobs = recipe.scaling
    runs = []
    for budget in sorted(knobs.budgets):
        for config in pick_shapes(knobs, budget, vocab_size):
            for number in range(knobs.seeds):
                seed = int(rng(recipe.seed, "scaling", number).integers(2**31))
                runs.append(make_plan(recipe, budget, config, recipe.pretrain.mix, seed, source))
    return runs


def make_plan(
    recipe: Recipe, budget: float, config: LlamaConfig, mix: dict[str, float], seed: int, source: dict[str, str]
) -> SweepRun:
    """A model trained for as many whole steps as come nearest to the budget."""
    knobs = recipe.scaling
    rows = max(1, round(power_law(knobs.batch_tokens, budget) / knobs.seq_len))
    rows = max(1, round(rows / knobs.micro_rows)) * knobs.micro_rows
    steps = max(1, round(budget / (flops_per_token(config, knobs.seq_len) * rows * knobs.seq_len)))
    options = Training(  # pyright: ignore[reportCallIssue]
        seq_len=knobs.seq_len,
        batch_rows=rows,
        micro_rows=knobs.micro_rows,
        peak_lr=float(f"{power_law(knobs.peak_lr, count_parameters(config)):.3g}"),
        warmup_steps=min(knobs.warmup_steps, round(knobs.warmup_share * steps)),
        schedule="cosine",
        final_lr=knobs.final_lr,
        weight_decay=knobs.weight_decay,
        precision=knobs.precision,
        compile=knobs.compile,
        processes=1,
        checkpoint_seconds=knobs.checkpoint_seconds,
        keep_checkpoints=1,
    )
    return SweepRun(
        budget=budget,
        config=config,
        steps=steps,
        options=options,
        mix=mix,
        weights=recipe.pretrain.weights,
        max_epochs=knobs.max_epochs,
        held_out_tokens=knobs.held_out_tokens,
        seed=seed,
        source=source,
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
        if abs(math.log(ratios[nearest] / target)) > math.log(2):
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
    dim = 8
    while dim <= LARGEST_DIM:
        yield dim
        dim += 4 if dim < 32 else max(8, 2 ** (dim.bit_length() - 4))  # an eighth of the power of two below


def _shape(dim: int, vocab_size: int, seq_len: int) -> LlamaConfig:
    # heads of about 3 sqrt(dim), 128 at most; layers and FFN grow as in the presets
    head_dim = max(size for size in (2, 4, 8, 16, 32, 64, 128) if dim % size == 0 and size <= 3 * math.sqrt(dim))
    heads = dim // head_dim
    kv_heads = max(n for n in range(1, min(8, max(1, heads // 2)) + 1) if heads % n == 0)
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
