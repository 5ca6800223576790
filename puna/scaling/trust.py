"""When a fit should not be trusted, and what would mend it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from puna.scaling.approaches import move_together

if TYPE_CHECKING:
    from puna.scaling.fit import ScalingFit

FEW_BUDGETS = 4
"""Fewer leave a line through the minima with next to nothing to check it (ours)."""
SHIFT = 0.03
"""A change of the exponent that moves tokens at a thousand times the compute by a quarter (ours)."""


def find_warnings(fit: "ScalingFit", reasons: dict[str, str]) -> Iterator[str]:
    """reasons: approach that could not be fitted -> why."""
    for name, reason in reasons.items():
        yield f"no {name} fit: {reason}"
    yield from _budget_warnings(fit)
    yield from _stability_warnings(fit)
    yield from _law_warnings(fit)


def _budget_warnings(fit: "ScalingFit") -> Iterator[str]:
    for parabola in fit.parabolas:
        if parabola.problem:
            yield f"budget {parabola.flops:.3g} FLOPs stands aside: {parabola.problem}"
    good = sum(parabola.problem is None for parabola in fit.parabolas)
    if "isoflop" in fit.approaches and good < FEW_BUDGETS:
        yield f"the IsoFLOP line goes through {good} minima; {FEW_BUDGETS} or more budgets are needed to check it"
    span = np.log10(fit.points.flops.max() / fit.points.flops.min())
    if span < 1:
        yield f"all runs lie within {10**span:.3g} times in FLOPs; exponents need a decade or more: add budgets"


def _stability_warnings(fit: "ScalingFit") -> Iterator[str]:
    exponents = {name: float(approach.frontier.exponent) for name, approach in fit.approaches.items()}
    low, high = min(exponents, key=exponents.__getitem__), max(exponents, key=exponents.__getitem__)
    if exponents[high] - exponents[low] > SHIFT:
        far = 100 * float(fit.points.flops.max())
        tokens = {name: float(fit[name].frontier.tokens(far)) for name in (low, high)}
        yield (
            f"the approaches disagree: tokens grow as C^{exponents[low]:.3f} by {low}, C^{exponents[high]:.3f} by "
            f"{high}; at {far:.2g} FLOPs that is {tokens[low]:.3g} against {tokens[high]:.3g} tokens"
        )
    chosen = fit[fit.preferred]
    for left_out, frontier in chosen.without.items():
        shift = float(frontier.exponent - chosen.frontier.exponent)
        outside = not _inside(float(frontier.exponent), chosen.samples.exponent, fit.level)
        if np.isfinite(shift) and abs(shift) > 0.02 and (outside or abs(shift) > SHIFT):
            yield (
                f"the exponent of tokens hangs on the runs at {left_out:.3g} FLOPs: without them it is "
                f"{float(frontier.exponent):.3f}, with them {float(chosen.frontier.exponent):.3f} ({fit.preferred}); "
                "run more models there and above"
            )
    failed = float(np.mean(~np.isfinite(chosen.samples.exponent)))
    if failed > 0.05:
        yield f"{failed:.0%} of the bootstrap samples had no fit; the intervals rest on the others: add runs"


def _law_warnings(fit: "ScalingFit") -> Iterator[str]:
    if "parametric" not in fit.approaches:
        return
    whole = fit["parametric"]
    if fit.outliers:
        worst = fit.outliers[0]
        rows = ", ".join(str(outlier.row) for outlier in fit.outliers[:8])
        yield (
            f"{len(fit.outliers)} of {len(fit.points)} runs are outliers (rows {rows}); the worst, row {worst.row}, "
            f"has loss {worst.loss:.4g} where the law says {worst.expected:.4g}: check them, or leave them out"
        )
    for left_out, frontier in fit.sensitivity.items():
        shift = float(frontier.exponent - whole.frontier.exponent)
        if abs(shift) > SHIFT and not left_out.endswith("compute"):
            yield (
                f"approach 3 hangs on few runs: without the {left_out} the exponent of parameters is "
                f"{float(frontier.params_exponent):.3f}, with them {float(whole.frontier.params_exponent):.3f}"
            )
    law = fit.law[0]
    if law.irreducible < 0.05 * fit.points.loss.min():
        yield "the irreducible loss E goes to 0: the runs are too small to see it; do not extrapolate the loss"
    if (law.exponents > 1.2).any() or (law.exponents < 0.03).any():
        yield (
            f"alpha {law.exponents[0]:.3g}, beta {law.exponents[1]:.3g}: no published fit is near; "
            "parameters or tokens were varied too little"
        )
    if move_together(fit.points):
        yield "parameters and tokens move together in these runs, so approach 3 cannot tell them apart; vary both"
    if fit.backtest and fit.backtest.inside < 0.5:
        b = fit.backtest
        yield (
            f"back-test: fitted without the largest budget, approach 3 misses its losses by {b.error:+.2%} "
            f"(median of {b.runs} runs at {b.flops:.3g} FLOPs; {b.inside:.0%} inside their interval)"
        )


def extrapolation_warnings(fit: "ScalingFit", flops: float) -> Iterator[str]:
    """For a recommendation at `flops`."""
    largest = float(fit.points.flops.max())
    beyond = np.log10(flops / largest)
    covered = np.log10(largest / fit.points.flops.min())
    if beyond > max(covered, 0.5):
        yield (
            f"{flops:.3g} FLOPs lies {beyond:.1f} powers of ten above the largest run, further than the runs span "
            f"({covered:.1f}); the paper went 3.6 above 3.2 of its own"
        )
    recommendation = fit.recommend(flops)
    low, high = recommendation.tokens.low, recommendation.tokens.high
    if high > 3 * low:
        yield f"tokens at {flops:.3g} FLOPs are only known to lie in {low:.3g} to {high:.3g}: add larger budgets"
    for left_out, frontier in fit[fit.preferred].without.items():
        tokens = float(frontier.tokens(flops))
        if not low <= tokens <= high:
            yield f"without the runs at {left_out:.3g} FLOPs {tokens:.3g} tokens are recommended, outside the interval"


def _inside(value: float, samples: np.ndarray, level: float) -> bool:
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return bool(low <= value <= high)
