"""Figures as a paper prints them: SVG and PNG, the same bytes every time, readable in grey and by colour-blind eyes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from puna.scaling.approaches import budgets, envelope_points
from puna.scaling.fit import ScalingFit
from puna.scaling.forecast import Forecast, Target
from puna.scaling.samples import human, plain

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.titlesize": 8,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "puna",
    "figure.constrained_layout.use": True,
}
APPROACH = {
    "isoflop": ("#0072B2", "-", "IsoFLOP"),
    "parametric": ("#D55E00", "--", "parametric"),
    "envelope": ("#009E73", ":", "envelope"),
}
"""Colour (Okabe and Ito's, for colour-blind eyes), line and name of each approach."""
WIDE, TALL = 6.8, 2.9
"""Inches: two columns of a paper."""
MOST_LABELS = 12


def isoflop_figure(fit: ScalingFit) -> Figure:
    """Loss against training tokens for every budget, with its parabola and minimum (the paper's figure 2)."""
    points, groups = fit.points, budgets(fit.points)
    with _style():
        figure = _figure(WIDE * 0.66, TALL * 1.25)
        axes = figure.subplots()
        colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, max(len(groups), 2)))
        parabolas = {parabola.flops: parabola for parabola in fit.parabolas}
        for number, flops in enumerate(groups.flops):
            here, colour = groups.group == number, colours[number]
            tokens, loss = points.tokens[here], points.loss[here]
            axes.plot(tokens, loss, "o", ms=3, color=colour, mew=0, alpha=0.8)
            parabola = parabolas.get(float(flops))
            at, height = tokens.max(), loss[tokens.argmax()]
            if parabola:
                curve = np.geomspace(*parabola.span, 100)
                axes.plot(curve, parabola(curve), color=colour, lw=1, ls="-" if parabola.problem is None else ":")
                if parabola.problem is None:
                    axes.plot(parabola.tokens, parabola.loss, "D", ms=5, mfc="white", mec=colour, mew=1.2, zorder=5)
            if len(groups) <= MOST_LABELS:
                axes.annotate(
                    plain(f"{flops:.2g}"),
                    (at, height),
                    (3, 0),
                    textcoords="offset points",
                    color=colour,
                    va="center",
                    size=7,
                )
        axes.set(xscale="log", xlabel="training tokens", ylabel="loss", title="Loss at equal compute (labels: FLOPs)")
        axes.margins(x=0.12)
    return figure


def frontier_figure(fit: ScalingFit, flops: float | None = None) -> Figure:
    """Optimal tokens and parameters against compute by every approach (the paper's figure 3), to a target budget."""
    points = fit.points
    target = flops or 10 * float(points.flops.max())
    grid = np.geomspace(points.flops.min(), max(target, points.flops.max()), 100)
    preferred, recommended = fit[fit.preferred], fit.recommend(target)
    with _style():
        figure = _figure(WIDE, TALL)
        sides = ("tokens", "params")
        for axes, side in zip(figure.subplots(1, 2), sides):
            samples = getattr(preferred.samples, side)(grid)
            tail = (1 - fit.level) / 2
            low, high = np.nanquantile(samples, [tail, 1 - tail], axis=0)
            colour = APPROACH[preferred.name][0]
            axes.fill_between(grid, low, high, color=colour, alpha=0.15, lw=0)
            for name, approach in fit.approaches.items():
                shade, line, label = APPROACH[name]
                exponent = approach.frontier.exponent if side == "tokens" else approach.frontier.params_exponent
                label = f"{label}: $C^{{{float(exponent):.3f}}}$"
                axes.plot(grid, getattr(approach.frontier, side)(grid), line, color=shade, label=label)
            _optima(axes, fit, side)
            value, below, above = getattr(recommended, side)
            error = [[value - below], [above - value]]
            axes.errorbar(target, value, error, fmt="*", ms=9, color="black", capsize=3, lw=1, zorder=6)
            axes.axvline(points.flops.max(), color="grey", lw=0.6, ls="--")
            name = "tokens" if side == "tokens" else "parameters"
            axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=f"optimal {name}")
            axes.set_title(plain(f"{human(value)} {name} at {target:.3g} FLOPs"))
            axes.legend(loc="upper left")
    return figure


def _optima(axes: Axes, fit: ScalingFit, side: str) -> None:
    """What the lines go through: minima of parabolas, or the best runs."""
    if fit.preferred == "isoflop":
        good = [parabola for parabola in fit.parabolas if parabola.problem is None]
        flops, tokens = np.array([p.flops for p in good]), np.array([p.tokens for p in good])
        params = flops / (fit.points.flops_per_param_token * tokens)
    else:
        flops, params = (row[0] for row in envelope_points(fit.points, np.ones((1, len(fit.points)))))
        tokens = flops / (fit.points.flops_per_param_token * params)
    colour = APPROACH["isoflop" if fit.preferred == "isoflop" else "envelope"][0]
    axes.plot(flops, tokens if side == "tokens" else params, "o", ms=3.5, mfc="white", mec=colour, mew=1, zorder=5)


def residuals_figure(fit: ScalingFit) -> Figure:
    """How far approach 3 misses each run, against compute and tokens a parameter; outliers by their row."""
    points, residuals = fit.points, 100 * fit.residuals
    outliers = {outlier.row for outlier in fit.outliers}
    odd = np.isin(points.row, list(outliers))
    with _style():
        figure = _figure(WIDE, TALL)
        left, right = figure.subplots(1, 2, sharey=True)
        ratios = points.tokens / points.params
        for axes, x, name in ((left, points.flops, "training FLOPs"), (right, ratios, "tokens a parameter")):
            axes.axhline(0, color="black", lw=0.6)
            axes.plot(x[~odd], residuals[~odd], "o", ms=3, mew=0, color="#0072B2", alpha=0.7)
            axes.plot(x[odd], residuals[odd], "x", ms=5, color="#D55E00")
            for i in np.flatnonzero(odd)[:MOST_LABELS] if axes is left else []:
                axes.annotate(
                    f"row {points.row[i]:.0f}", (x[i], residuals[i]), (4, 0), textcoords="offset points", size=6
                )
            axes.set(xscale="log", xlabel=name)
        left.set_ylabel("loss above the law, %")
        left.set_title(f"{len(points)} runs, median |miss| {np.median(np.abs(residuals)):.2g}%")
        right.set_title(f"{len(outliers)} outliers (x)")
    return figure


def forecast_figure(forecast: Forecast, target: Target) -> Figure:
    """Both steps of a forecast: loss of the task against compute, accuracy against loss; the target as a star."""
    ends, predicted = forecast.ends, forecast.predict(target)
    kind = forecast.law.kind
    known, flops = ends.known(kind), float(target.sizes(kind)[2])
    with _style():
        figure = _figure(WIDE, TALL)
        left, right = figure.subplots(1, 2)
        left.plot(ends.flops[known], ends.loss[known], "o", ms=4, mfc="white", mec="#0072B2", label="runs")
        fitted = forecast.law(ends.sizes(known))
        left.plot(ends.flops[known], fitted, "x", ms=4, color="#D55E00", label="law")
        value, low, high = predicted.loss
        left.errorbar(flops, value, [[max(value - low, 0)], [max(high - value, 0)]], fmt="k*", ms=9, capsize=3, lw=1)
        left.set(xscale="log", xlabel="training FLOPs", ylabel="loss of the task", title=f"step 1: {kind} law")
        left.legend(loc="upper right")
        grid = np.linspace(min(low, ends.loss.min()) * 0.95, forecast.runs.loss.max(), 200)
        curves = forecast.sigmoids(grid)
        tail = (1 - forecast.level) / 2
        band = np.quantile(curves, [tail, 1 - tail], axis=0)
        right.plot(forecast.runs.loss, forecast.runs.accuracy, ".", ms=2, color="grey", alpha=0.4, label="checkpoints")
        right.plot(ends.loss, ends.accuracy, "o", ms=4, mfc="white", mec="#0072B2", label="runs")
        right.fill_between(grid, *band, color="#D55E00", alpha=0.2, lw=0)
        right.plot(grid, forecast.sigmoid(grid), color="#D55E00")
        accuracy = predicted.accuracy
        bars = [[max(accuracy.value - accuracy.low, 0)], [max(accuracy.high - accuracy.value, 0)]]
        right.errorbar(value, accuracy.value, bars, [[max(value - low, 0)], [max(high - value, 0)]], "k*", ms=9, lw=1)
        right.set(xlabel="loss of the task", ylabel="accuracy", title=f"step 2: {accuracy.value:.3f} at the target")
        right.legend(loc="upper right")
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.svg and PATH.png (200 dots an inch)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + ending) for ending in (".svg", ".png")]
    with _style():
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=200, metadata={"Software": None})
    return files


def save_fit_figures(fit: ScalingFit, folder: Path, flops: float | None = None) -> list[Path]:
    """All figures that a fit has: isoflop, frontier, residuals; SVG and PNG."""
    files = save(isoflop_figure(fit), folder / "isoflop") if fit.parabolas else []
    files += save(frontier_figure(fit, flops), folder / "frontier")
    if "parametric" in fit.approaches:
        files += save(residuals_figure(fit), folder / "residuals")
    return files


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # log axes of a narrow range warn about their minor ticks
        warnings.simplefilter("ignore", UserWarning)
        yield
