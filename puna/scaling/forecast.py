"""Forecast of a benchmark's accuracy in two steps (the paper, section 3.2.1): compute -> loss of the task -> accuracy.

The loss of a task is the normalised negative log-likelihood of its right answer, or bits per byte. Step 1 takes it from
size: linear in log FLOPs (the paper, on compute-optimal models), or the additive power law in parameters and tokens of
the OLMo ladder (Bhagia et al., arXiv 2412.04403). Step 2 is a sigmoid from loss to accuracy, fitted on checkpoints too,
on models whose size is unknown or that were trained on other data too (the paper added Llama 2), and on the ideal point
(loss 0, accuracy 1) as the ladder does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from puna.errors import PunaError
from puna.scaling.power import Array, PowerLaw, compute_helps, fit_power_law, refit_power_law
from puna.scaling.samples import Interval, generator, interval
from puna.scaling.sigmoid import Sigmoid, fit_sigmoid, refit_sigmoid
from puna.scaling.task_runs import MOVING_AVERAGE, Ends, TaskRuns, ends_of

LAWS = ("power", "linear")
SKIPPED_START = 0.1
"""The part of a run's checkpoints that step 2 leaves out as too noisy (Bhagia et al., section 3.3)."""
WIDE = 0.15
"""An interval of accuracy wider than this decides little (ours)."""
STEEP = 0.6
"""Published exponents of language-model losses lie between about 0.2 and 0.5 (the bound is ours)."""


@dataclass(frozen=True)
class Prediction:
    loss: Interval
    accuracy: Interval


@dataclass(frozen=True)
class HeldOut:
    """A run that the back-test left out, what was predicted for it and what it reached."""

    run: str
    flops: float
    predicted: Prediction
    loss: float
    accuracy: float

    @property
    def inside(self) -> bool:
        p = self.predicted
        return p.loss.low <= self.loss <= p.loss.high and p.accuracy.low <= self.accuracy <= p.accuracy.high


@dataclass(frozen=True)
class Forecast:
    """Both steps with their bootstrap samples over runs."""

    runs: TaskRuns
    ends: Ends
    law: "Step1"
    laws: "Step1"
    sigmoid: Sigmoid
    sigmoids: Sigmoid
    level: float
    seed: int
    average: int

    def predict(self, target: "Target") -> Prediction:
        """Loss and accuracy that one model of this size will show, with the scatter of single models."""
        size = target.sizes(self.law.kind)
        loss = self.law(size)
        known = self.ends.known(self.law.kind)
        relative = self.ends.loss[known] / self.law(self.ends.sizes(known))
        draws = generator(self.seed, "forecast")
        count = len(self.sigmoids.theta)
        losses = self.laws(size) * draws.choice(relative, count)
        missed = self.ends.accuracy - self.sigmoid(self.ends.loss)
        accuracies = np.clip(self.sigmoids(losses[:, None])[:, 0] + draws.choice(missed, count), 0, 1)
        return Prediction(interval(loss, losses, self.level), interval(self.sigmoid(loss), accuracies, self.level))

    def warnings(self, target: "Target") -> Iterator[str]:
        """Why the forecast at this size should not be trusted."""
        yield from _warnings(self, target)


@dataclass(frozen=True)
class Target:
    """The size to forecast: params and tokens, or FLOPs alone for the linear law."""

    params: float = float("nan")
    tokens: float = float("nan")
    flops: float = float("nan")

    def sizes(self, kind: str) -> Array:
        """params, tokens, FLOPs (3,); PunaError where the law needs what is not given."""
        product = float(self.params) * float(self.tokens)
        flops = 6 * product if np.isnan(self.flops) else float(self.flops)
        if not np.isfinite(product if kind == "power" else flops):
            raise PunaError(
                f"the {kind} law needs {'params and tokens' if kind == 'power' else 'FLOPs'} of the model to forecast"
            )
        return np.array([self.params, self.tokens, flops])


@dataclass(frozen=True)
class Step1:
    """Loss of the task from size: a PowerLaw in (params, tokens), or a line in log FLOPs; (S,) of them as samples."""

    kind: str
    power: PowerLaw | None = None
    slope: Array | None = None
    constant: Array | None = None

    def __call__(self, sizes: Array) -> Array:
        """Loss at params, tokens, FLOPs (3,) or (3, r)."""
        if self.power is not None:
            return self.power(*sizes[:2])
        assert self.slope is not None
        assert self.constant is not None
        x = np.log(sizes[2])
        return self.constant[..., None] + self.slope[..., None] * x if x.ndim else self.constant + self.slope * x


def fit_forecast(
    runs: TaskRuns,
    law: str = "power",
    bootstraps: int = 300,
    seed: int = 0,
    level: float = 0.95,
    average: int = MOVING_AVERAGE,
) -> Forecast:
    """Fit both steps, step 1 by `law` ("power" or "linear"). PunaError for too few runs of known size."""
    if law not in LAWS:
        raise PunaError(f"law {law!r}: choose {' or '.join(LAWS)}")
    ends = ends_of(runs, average)
    known = ends.known(law)
    count, needed = int(known.sum()), 6 if law == "power" else 3
    if count < needed:
        mend = ", or use the linear law" if law == "power" and ends.known("linear").sum() >= 3 else ""
        raise PunaError(f"{count} runs of known size; the {law} law needs {needed}: add runs{mend}")
    picks = generator(seed, "task runs").multinomial(count, np.full(count, 1 / count), size=bootstraps)
    sizes = ends.sizes(known)
    point = _step1(law, sizes, ends.loss[known], np.ones((1, count)), None)
    samples = _step1(law, sizes, ends.loss[known], picks.astype(float), point)
    weights = np.ones((bootstraps, len(ends.run)))
    weights[:, known] = picks
    losses, accuracies, member = _smoothed(runs, average)
    sigmoid = fit_sigmoid(losses, accuracies)
    sigmoids = refit_sigmoid(sigmoid, losses, accuracies, weights[:, member])
    return Forecast(runs, ends, point, samples, sigmoid, sigmoids, level, seed, average)


def _step1(kind: str, sizes: Array, loss: Array, weights: Array, start: Step1 | None) -> Step1:
    if kind == "power":
        if start is None or start.power is None:
            return Step1(kind, power=fit_power_law(sizes[:2], loss))
        return Step1(kind, power=refit_power_law(start.power, sizes[:2], loss, weights))
    x = np.log(sizes[2])
    total = weights.sum(axis=1)
    mean_x, mean_y = weights @ x / total, weights @ loss / total
    dx, dy = x - mean_x[:, None], loss - mean_y[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (weights * dx * dy).sum(axis=1) / (weights * dx**2).sum(axis=1)
    constant = mean_y - slope * mean_x
    return Step1(kind, slope=slope, constant=constant) if start else Step1(kind, slope=slope[0], constant=constant[0])


def _smoothed(runs: TaskRuns, average: int) -> tuple[Array, Array, Array]:
    """Checkpoints for step 2: without each run's start, moving averages; and the number of the run of each."""
    losses, accuracies, member = [], [], []
    for number, (_, at) in enumerate(runs.runs()):
        kept = at[int(np.ceil(SKIPPED_START * len(at))) :] if len(at) > 1 else at
        losses.append(moving_average(runs.loss[kept], average))
        accuracies.append(moving_average(runs.accuracy[kept], average))
        member.append(np.full(len(kept), number))
    return np.concatenate(losses), np.concatenate(accuracies), np.concatenate(member)


def moving_average(values: Array, width: int) -> Array:
    """Each value with those before it, `width` at most; the same length."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(stop - width, 0)
    return (sums[stop] - sums[start]) / (stop - start)


def backtest(forecast: Forecast, share: float = 0.2) -> list[HeldOut]:
    """Hold out the largest `share` of the runs (one at least), fit the others, predict them. Empty with too few."""
    ends = forecast.ends
    known = np.flatnonzero(ends.known(forecast.law.kind))
    order = known[np.argsort(ends.flops[known], kind="stable")]
    count = max(1, round(share * len(order)))
    largest = order[-count:]
    rest = [name for i, name in enumerate(ends.run) if i not in set(largest.tolist())]
    kept, samples = forecast.runs.keep(rest), len(forecast.sigmoids.theta)
    try:
        fitted = fit_forecast(kept, forecast.law.kind, samples, forecast.seed, forecast.level, forecast.average)
    except PunaError:
        return []
    return [
        HeldOut(
            run=ends.run[i],
            flops=float(ends.flops[i]),
            predicted=fitted.predict(Target(float(ends.params[i]), float(ends.tokens[i]), float(ends.flops[i]))),
            loss=float(ends.loss[i]),
            accuracy=float(ends.accuracy[i]),
        )
        for i in largest
    ]


def _warnings(forecast: Forecast, target: Target) -> Iterator[str]:
    predicted = forecast.predict(target)
    low, high = predicted.accuracy.low, predicted.accuracy.high
    if high - low > WIDE:
        yield (
            f"the accuracy is only known to lie between {low:.3f} and {high:.3f}: the runs do not settle how the loss "
            "of the task goes on falling; add larger runs"
        )
    known = forecast.ends.known(forecast.law.kind)
    flops = forecast.ends.flops[known]
    reach = np.log10(target.sizes(forecast.law.kind)[2] / flops.max())
    span = np.log10(flops.max() / flops.min())
    if reach > span:
        yield f"the target lies {reach:.1f} powers of ten above the largest run; the runs themselves span {span:.1f}"
    if forecast.law.power is not None and (forecast.law.power.exponents > STEEP).any():
        alpha, beta = forecast.law.power.exponents
        yield (
            f"alpha {alpha:.2f}, beta {beta:.2f}: no published law of loss is as steep; it says that more "
            f"{'parameters' if alpha > beta else 'tokens'} hardly help beyond these runs, which noise can feign"
        )
    if not compute_helps(flops, forecast.ends.loss[known]):
        yield "more compute brings no lower loss of the task: is it an accuracy, or a log-likelihood?"
    held = backtest(forecast)
    missed = [run for run in held if not run.inside]
    if missed:
        worst = missed[-1]  # the largest
        loss, accuracy = worst.predicted.loss, worst.predicted.accuracy
        yield (
            f"back-test: {len(missed)} of {len(held)} held-out runs lie outside their intervals; {worst.run} reached "
            f"loss {worst.loss:.3f} where {loss.value:.3f} ({loss.low:.3f} to {loss.high:.3f}) was predicted, accuracy "
            f"{worst.accuracy:.3f} where {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}) was"
        )
