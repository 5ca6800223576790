"""All approaches on one table of runs: recommendations with intervals, and what speaks against trusting them."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import t as student

from puna.errors import PunaError
from puna.scaling.approaches import (
    NEAR,
    Frontier,
    Parabola,
    budgets,
    envelope,
    fit_parabolas,
    isoflop,
    move_together,
    parametric,
    parametric_frontier,
    reparametric,
)
from puna.scaling.points import Points
from puna.scaling.power import Array, PowerLaw
from puna.scaling.samples import Interval, generator, interval, plain, resample_runs
from puna.scaling.trust import find_warnings

APPROACHES = ("isoflop", "parametric", "envelope")
"""In the order of preference where the table carries several: the paper used IsoFLOP (section 3.2.1)."""
OUTLIER = 3.5
"""Modified z-score beyond which a run is called an outlier (Iglewicz and Hoaglin, 1993)."""


@dataclass(frozen=True)
class Approach:
    """One approach's frontier, with its bootstrap samples and what it is without each budget."""

    name: str
    frontier: Frontier
    samples: Frontier
    without: dict[float, Frontier]
    """Left-out budget -> the frontier of the others."""
    law: PowerLaw | None = None
    """Approach 3 only: loss from parameters and tokens."""
    law_samples: PowerLaw | None = None


@dataclass(frozen=True)
class Recommendation:
    """The compute-optimal model at a budget."""

    flops: float
    approach: str
    params: Interval
    tokens: Interval
    loss: Interval | None
    """From approach 3, where the table carries it."""

    @property
    def tokens_per_param(self) -> float:
        return self.tokens.value / self.params.value


@dataclass(frozen=True)
class Outlier:
    """A run that approach 3 misses by far: its row in the table, its loss, what the law says, how far that is."""

    row: int
    loss: float
    expected: float
    z: float


@dataclass(frozen=True)
class Backtest:
    """Approach 3 fitted without the largest budget, against the losses seen there."""

    flops: float
    runs: int
    error: float
    """Median of predicted / seen - 1."""
    inside: float
    """Share of runs inside the interval for a single run."""


@dataclass(frozen=True)
class ScalingFit:
    points: Points
    approaches: dict[str, Approach]
    preferred: str
    level: float
    seed: int
    parabolas: list[Parabola]
    outliers: list[Outlier]
    sensitivity: dict[str, Frontier]
    """What was left out -> approach 3 on the rest."""
    backtest: Backtest | None
    warnings: list[str]

    def recommend(self, flops: float, approach: str | None = None) -> Recommendation:
        """Parameters, tokens and loss at a training budget in FLOPs; PunaError for an approach that was not fitted."""
        chosen = self[approach or self.preferred]
        params = interval(chosen.frontier.params(flops), chosen.samples.params(flops), self.level)
        tokens = interval(chosen.frontier.tokens(flops), chosen.samples.tokens(flops), self.level)
        loss = self.predict_loss(params.value, tokens.value) if "parametric" in self.approaches else None
        return Recommendation(flops, chosen.name, params, tokens, loss)

    def predict_loss(self, params: float, tokens: float, level: float | None = None) -> Interval:
        """The loss that one run of this size will show, by approach 3.

        The interval holds the law's uncertainty (bootstrap) and the scatter of single runs about it.
        """
        law, samples = self.law
        noise = generator(self.seed, "scatter").choice(self.residuals, len(samples.theta))
        drawn = samples(params, tokens) * np.exp(noise)
        return interval(law(params, tokens), drawn, level or self.level)

    def predict_lowest_loss(self, flops: float, level: float | None = None) -> Interval:
        """The lowest loss that a budget buys: a line through the IsoFLOP minima, log loss over log compute.

        It knows no floor, so it is for a decade or so beyond the runs. The interval is Student's, for a new budget.
        Raises PunaError for fewer than three minima.
        """
        minima = [parabola for parabola in self.parabolas if parabola.problem is None]
        if len(minima) < 3:
            raise PunaError(f"a law of the lowest loss needs the minima of 3 budgets, there are {len(minima)}")
        x, y = np.log([[each.flops, each.loss] for each in minima]).T
        slope, intercept = np.polyfit(x, y, 1)
        free = len(x) - 2
        spread = np.sqrt(np.square(y - intercept - slope * x).sum() / free)
        away = np.log(flops) - x.mean()
        error = spread * np.sqrt(1 + 1 / len(x) + away**2 / np.square(x - x.mean()).sum())
        half = float(student.ppf((1 + (level or self.level)) / 2, free)) * error
        value = intercept + slope * np.log(flops)
        return Interval(*(float(np.exp(v)) for v in (value, value - half, value + half)))

    @property
    def law(self) -> tuple[PowerLaw, PowerLaw]:
        """Approach 3: the law and its bootstrap samples."""
        fitted = self["parametric"]
        assert fitted.law is not None
        assert fitted.law_samples is not None
        return fitted.law, fitted.law_samples

    @property
    def residuals(self) -> Array:
        """log loss seen - log loss of approach 3, (n,)."""
        return np.log(self.points.loss) - np.log(self.law[0](self.points.params, self.points.tokens))

    def __getitem__(self, approach: str) -> Approach:
        if approach not in self.approaches:
            fitted = ", ".join(self.approaches)
            raise PunaError(f"this table carries no {approach!r} fit; it carries {fitted}")
        return self.approaches[approach]


def fit_scaling(
    points: Points,
    bootstraps: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    approach: str | None = None,
    near: float = NEAR,
) -> ScalingFit:
    """Fit every approach that the table can carry.

    `approach` is the preferred one (default: the first of isoflop, parametric, envelope that the runs settle).
    Intervals are at `level`, from `bootstraps` samples over runs. Parabolas go through the runs at most `near` (a
    share) above the lowest loss of their budget. PunaError where no approach fits, with the reason of each.
    """
    if approach is not None and approach not in APPROACHES:
        raise PunaError(f"approach {approach!r}: choose {', '.join(APPROACHES)}")
    if not 0 < level < 1 or bootstraps < 2:
        raise PunaError(f"level {level} and bootstraps {bootstraps}: a level between 0 and 1, at least 2 samples")
    ends = points.last_of_each_run()
    fitted: dict[str, Approach] = {}
    reasons: dict[str, str] = {}
    for name in APPROACHES:
        try:
            fitted[name] = _fit_one(name, points if name == "envelope" else ends, bootstraps, seed, near)
        except PunaError as error:
            reasons[name] = str(error)
    if not fitted or (approach and approach not in fitted):
        wanted = [approach] if approach else list(reasons)
        raise PunaError("; ".join(f"{name}: {reasons[name]}" for name in wanted))
    parabolas = fit_parabolas(ends, near)
    law = fitted["parametric"].law if "parametric" in fitted else None
    outliers = find_outliers(ends, law) if law else []
    fit = ScalingFit(
        points=ends,
        approaches=fitted,
        preferred=approach or _preferred(fitted, ends),
        level=level,
        seed=seed,
        parabolas=parabolas,
        outliers=outliers,
        sensitivity=_sensitivity(ends, law, outliers) if law else {},
        backtest=_backtest(ends, level, seed) if law else None,
        warnings=list(points.warnings),
    )
    fit.warnings.extend(plain(warning) for warning in find_warnings(fit, reasons))
    return fit


def _preferred(fitted: dict[str, Approach], points: Points) -> str:
    if "isoflop" not in fitted and "envelope" in fitted and move_together(points):
        return "envelope"
    return next(iter(fitted))


def _fit_one(name: str, points: Points, bootstraps: int, seed: int, near: float) -> Approach:
    weights = resample_runs(points, bootstraps, seed)
    parts_of = budgets(points)
    folds = (parts_of.group != np.arange(len(parts_of))[:, None]).astype(float)
    if name == "parametric":
        k = points.flops_per_param_token
        law = parametric(points)
        frontier, laws = parametric_frontier(law, k), reparametric(law, points, weights)
        samples = parametric_frontier(laws, k)
        parts = parametric_frontier(reparametric(law, points, folds), k)
    else:
        law = laws = None
        method = partial(isoflop, near=near) if name == "isoflop" else envelope
        frontier, samples = method(points), method(points, weights)
        parts = method(points, folds)
    without = {float(flops): parts.sample(i) for i, flops in enumerate(parts_of.flops)} if len(parts_of) > 2 else {}
    return Approach(name, frontier, samples, without, law, laws)


def find_outliers(points: Points, law: PowerLaw) -> list[Outlier]:
    """Runs with a modified z-score beyond 3.5, worst first."""
    expected = law(points.params, points.tokens)
    residuals = np.log(points.loss) - np.log(expected)
    centred = residuals - np.median(residuals)
    # a fit that is exact to rounding has no outliers
    scale = max(1.4826 * float(np.median(np.abs(centred))), 1e-6)
    z = centred / scale
    worst = [i for i in np.argsort(-np.abs(z), kind="stable") if abs(z[i]) > OUTLIER]
    return [Outlier(int(points.row[i]), float(points.loss[i]), float(expected[i]), float(z[i])) for i in worst]


def _sensitivity(points: Points, law: PowerLaw, outliers: list[Outlier]) -> dict[str, Frontier]:
    """Approach 3 on parts of the table: a fit that one handful of runs decides is not to be trusted."""
    parts = {}
    if outliers:
        parts[f"{len(outliers)} outliers"] = ~np.isin(points.row, [outlier.row for outlier in outliers])
    order = np.argsort(points.loss, kind="stable")
    few = max(1, round(0.02 * len(points)))
    for name, rows in (("highest", order[-few:]), ("lowest", order[:few])):
        parts[f"{few} {name} losses"] = ~np.isin(np.arange(len(points)), rows)
    parts["smaller half of the compute"] = points.flops >= np.median(points.flops)
    parts["larger half of the compute"] = points.flops <= np.median(points.flops)
    usable = {name: mask for name, mask in parts.items() if mask.sum() >= 6}
    if not usable:
        return {}
    refits = reparametric(law, points, np.stack(list(usable.values())).astype(float))
    refits = parametric_frontier(refits, points.flops_per_param_token)
    return {name: refits.sample(i) for i, name in enumerate(usable)}


def _backtest(points: Points, level: float, seed: int) -> Backtest | None:
    parts = budgets(points)
    # the largest budget, and those below it until there are three runs to judge by
    first = next((b for b in reversed(range(len(parts))) if (parts.group >= b).sum() >= 3), 0)
    held = parts.group >= first
    if (~held).sum() < 8:
        return None
    rest, test = points.keep(~held), points.keep(held)
    law = parametric(rest)
    samples = reparametric(law, rest, resample_runs(rest, 200, seed))
    expected = law(test.params, test.tokens)
    scatter = np.log(rest.loss) - np.log(law(rest.params, rest.tokens))
    noise = generator(seed, "backtest").choice(scatter, (200, len(test)))
    drawn = samples(test.params, test.tokens) * np.exp(noise)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    inside = float(np.mean((test.loss >= low) & (test.loss <= high)))
    error = float(np.median(expected / test.loss - 1))
    return Backtest(float(np.median(test.flops)), len(test), error, inside)
