"""Data mixes: which one will serve the large model best, from small runs; and what annealing says about a source.

The paper trains several small models on a mix, predicts a large model's loss from them and compares mixes so (section
3.1.2). Here the mixes share one exponent, which few runs can afford: loss = E_m + A_m / C^gamma, with E_m and A_m of
each mix (variable projection: they are a linear fit once gamma is given).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from puna.errors import PunaError
from puna.scaling.power import Array
from puna.scaling.samples import Interval, generator, interval

EXPONENTS = np.geomspace(0.02, 1.0, 120)


@dataclass(frozen=True)
class MixForecast:
    """A mix's predicted loss at the target, and how often it came first among the bootstrap samples."""

    mix: str
    loss: Interval
    best: float


@dataclass(frozen=True)
class MixLaws:
    """The shared exponent and the forecasts, best mix first."""

    flops: float
    exponent: Interval
    ranking: list[MixForecast]
    warnings: list[str]


@dataclass(frozen=True)
class AnnealProbe:
    """What a source adds when annealed on: mean of candidate minus default, with its t interval."""

    delta: Interval
    relative: float
    runs: tuple[int, int]
    helps: bool | None
    """None where the interval holds zero."""


def fit_mixes(
    mix: Sequence[str],
    flops: Sequence[float],
    loss: Sequence[float],
    target_flops: float,
    bootstraps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> MixLaws:
    """Predicted loss of every mix at `target_flops`, ranked. One row a run; at least three computes for each mix.

    Intervals are from resampled residuals, drawn for all mixes at once. PunaError for tables that cannot carry it.
    """
    x, y = np.asarray(flops, float), np.asarray(loss, float)
    names = sorted(set(mix))
    member = np.array([names.index(name) for name in mix])
    _check(names, member, x, y)
    scale = float(np.exp(np.log(x).mean()))
    exponent, linear = _fit(x / scale, y[None], member, len(names))
    fitted = _predict(exponent, linear, x / scale, member)[0]
    free = len(y) - 2 * len(names) - 1
    residuals = (y - fitted) * np.sqrt(len(y) / free)
    draws = generator(seed, "mixes")
    noisy = fitted + draws.choice(residuals, (bootstraps, len(y)))
    exponents, linears = _fit(x / scale, noisy, member, len(names))
    at = np.full(len(names), target_flops / scale)
    point = _predict(exponent, linear, at, np.arange(len(names)))[0]
    law = _predict(exponents, linears, at, np.arange(len(names)))
    # the ranking is of laws; the interval is for one run, which scatters about its law
    runs = law + draws.choice(residuals, law.shape)
    wins = np.bincount(law.argmin(axis=1), minlength=len(names)) / bootstraps
    order = np.argsort(point, kind="stable")
    ranking = [MixForecast(names[m], interval(point[m], runs[:, m], level), float(wins[m])) for m in order]
    shared = interval(exponent[0], exponents, level)
    return MixLaws(target_flops, shared, ranking, _warnings(x, target_flops, ranking, shared))


def anneal_probe(
    candidate: Sequence[float], default: Sequence[float], level: float = 0.95, lower_is_better: bool = False
) -> AnnealProbe:
    """Value of a source from annealing runs of a half-trained model (the paper, section 3.1.3).

    `candidate`: scores of runs annealed to learning rate 0 on 30% of the source and 70% of the default mix; `default`:
    of runs on the default mix alone; one for each seed. Welch's t interval of the difference of means.
    """
    ours, theirs = np.asarray(candidate, float), np.asarray(default, float)
    for name, scores in (("candidate", ours), ("default", theirs)):
        if scores.size < 2:
            raise PunaError(f"{scores.size} {name} run: one run shows no scatter; anneal with two seeds or more")
        if not np.isfinite(scores).all():
            raise PunaError(f"{name} scores {scores.tolist()} hold what is no number; leave out failed runs")
    delta = float(ours.mean() - theirs.mean())
    parts = ours.var(ddof=1) / ours.size, theirs.var(ddof=1) / theirs.size
    error = float(np.sqrt(sum(parts)))
    if error == 0:
        raise PunaError("all runs score the same to the last digit; are the seeds different?")
    degrees = sum(parts) ** 2 / sum(part**2 / (n - 1) for part, n in zip(parts, (ours.size, theirs.size)))
    half = float(student.ppf((1 + level) / 2, degrees)) * error
    low, high = delta - half, delta + half
    helps = None if low <= 0 <= high else (delta < 0) == lower_is_better
    relative = delta / abs(float(theirs.mean())) if theirs.mean() else float("nan")
    return AnnealProbe(Interval(delta, low, high), relative, (ours.size, theirs.size), helps)


def _check(names: list[str], member: Array, x: Array, y: Array) -> None:
    if len({len(member), len(x), len(y)}) != 1:
        raise PunaError(f"{len(member)} mixes, {len(x)} FLOPs, {len(y)} losses: give one of each for every run")
    bad = np.flatnonzero(~(np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)))
    if bad.size:
        raise PunaError(f"row {bad[0] + 1}: FLOPs {x[bad[0]]:g}, loss {y[bad[0]]:g}; both must be positive numbers")
    for number, name in enumerate(names):
        computes = len(np.unique(x[member == number]))
        if computes < 3:
            raise PunaError(f"mix {name!r} has runs at {computes} computes; a law needs three or more: add runs")
    if len(y) <= 2 * len(names) + 1:
        raise PunaError(f"{len(y)} runs of {len(names)} mixes leave no error to judge by; add runs or seeds")


def _fit(x: Array, losses: Array, member: Array, mixes: int) -> tuple[Array, Array]:
    """losses (S, n) -> shared exponents (S,) from a grid, and E and A of each mix (S, mixes, 2)."""
    errors, solutions = zip(*(_linear(x, losses, member, mixes, gamma) for gamma in EXPONENTS))
    errors, solutions = np.stack(errors), np.stack(solutions)
    best = errors.argmin(axis=0)
    rows = np.arange(len(losses))
    return EXPONENTS[best], solutions[best, rows]


def _linear(x: Array, losses: Array, member: Array, mixes: int, gamma: float) -> tuple[Array, Array]:
    error = np.zeros(len(losses))
    solution = np.empty((len(losses), mixes, 2))
    for m in range(mixes):
        mine = member == m
        term = x[mine] ** -gamma
        dx = term - term.mean()
        y = losses[:, mine]
        slope = np.maximum((y * dx).sum(axis=1) / (dx**2).sum(), 0.0)
        # E must not be negative
        slope = np.minimum(slope, y.mean(axis=1) / term.mean())
        constant = y.mean(axis=1) - slope * term.mean()
        error += ((y - constant[:, None] - slope[:, None] * term) ** 2).sum(axis=1)
        solution[:, m] = np.stack([constant, slope], axis=1)
    return error, solution


def _predict(exponents: Array, linear: Array, x: Array, member: Array) -> Array:
    """(S, n) losses of mixes `member` (n,) at x (n,)."""
    return linear[:, member, 0] + linear[:, member, 1] * x ** -exponents[:, None]


def _warnings(x: Array, target: float, ranking: list[MixForecast], exponent: Interval) -> list[str]:
    warnings = []
    reach, span = np.log10(target / x.max()), np.log10(x.max() / x.min())
    if reach > max(span, 0.5):
        warnings.append(f"the target lies {reach:.1f} powers of ten above the largest run; the runs span {span:.1f}")
    if exponent.low <= EXPONENTS[0] or exponent.high >= EXPONENTS[-1]:
        warnings.append("the runs do not settle the exponent: they span too little compute; add smaller or larger ones")
    if len(ranking) > 1 and ranking[0].best < 0.9:
        first, second = ranking[:2]
        warnings.append(
            f"{first.mix} comes first in {first.best:.0%} of the samples, {second.mix} in {second.best:.0%}: these "
            "runs do not settle which is better; add runs or seeds"
        )
    return warnings
