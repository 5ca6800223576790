"""The scaling stage's artifact: the points of the sweep, the laws through them and a test of the laws.

points.csv     one row for each run: its purpose, shape, tokens, FLOPs, schedule and held-out loss
fit.json       exponents, intervals, recommendations and warnings, as `puna scaling fit` prints them
forecast.json  the runs of the largest budget, forecast from the smaller ones
data.json      what the mixes and probes say, where the recipe has some
"""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import count_parameters, flops_per_token
from puna.recipe import Recipe
from puna.run import figure
from puna.scaling.approaches import fit_parabolas
from puna.scaling.figures import save_fit_figures
from puna.scaling.fit import ScalingFit, fit_scaling
from puna.scaling.ladder import SHAPE, shapes
from puna.scaling.mixes import anneal_probe, fit_mixes
from puna.scaling.output import to_dict
from puna.scaling.points import Columns, Points, read_points
from puna.scaling.samples import interval
from puna.scaling.sweep import read_result, run_sweep, sweep_runs

COLUMNS = Columns(
    params="active_params", tokens="tokens", flops="flops", loss="loss", budget="budget", where={"purpose": "isoflop"}
)
LEVEL = 0.9
"""Of the forecast's intervals."""
AHEAD = (1, 10, 100)
"""The plan is made for so many times the largest budget."""
CURVE = 33
"""Points of a drawn curve."""


def run(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
    """Shards and tokenizer -> points, laws and figures."""
    folder = sweep_folder(inputs)
    runs = sweep_runs(recipe, inputs)
    run_sweep(runs, inputs, folder, recipe.scaling.workers, log)
    results = [read_result(run, folder) for run in runs]
    rows = [result for result in results if result and result["failed"] is None]
    failed = [result for result in results if result and result["failed"]]
    if not rows:
        raise PunaError(f"every run of the sweep failed; the first: {failed[0]['failed']}")
    write_points(rows, out / "points.csv")
    points = read_points(out / "points.csv", COLUMNS, check=False)  # the units are ours
    fit = fit_scaling(points, seed=recipe.seed)
    ahead = [max(recipe.scaling.budgets) * factor for factor in AHEAD]
    laws = to_dict(fit, sorted({*recipe.scaling.budgets, *ahead}))
    laws["isoflop"] = isoflop_curves(fit)
    laws["plan"] = plan_shapes(fit, ahead, runs[0].config.vocab_size, recipe.scaling.seq_len)
    laws["failed"] = {result["run"]: result["failed"] for result in failed}
    forecast = forecast_largest(points, recipe.seed)
    save_fit_figures(fit, out, ahead[-1])
    write_json(out / "fit.json", laws)
    write_json(out / "forecast.json", forecast)
    if recipe.scaling.mixes or recipe.scaling.probes:
        write_json(out / "data.json", judge_data(rows, max(ahead), recipe.seed))
    return metrics(fit, forecast)


def sweep_folder(inputs: dict[str, Path]) -> Path:
    """Where the runs of a sweep live: beside the artifacts, since they outlive any one making of the stage."""
    return inputs["shards"].parent / "sweep"


def judge_data(rows: list[dict[str, Any]], target: float, seed: int) -> dict[str, Any]:
    """Candidate mixes ranked by their forecast at `target` FLOPs, and what annealing on a part did to the held-out
    loss, as laws on so few runs allow."""
    mixes = [row for row in rows if row["purpose"].startswith("mix:")]
    scores: dict[str, list[float]] = {}
    for row in rows:
        kind, _, part = row["purpose"].partition(":")
        if kind == "probe":
            scores.setdefault(part, []).append(row["loss"])
    default = scores.pop("", [])
    found: dict[str, Any] = {"target": target, "mixes": None, "probes": {}}
    if mixes:
        names = [row["purpose"].removeprefix("mix:") for row in mixes]
        laws = fit_mixes(names, [row["flops"] for row in mixes], [row["loss"] for row in mixes], target, seed=seed)
        found["mixes"] = asdict(laws)
    for part, losses in scores.items():
        found["probes"][part] = asdict(anneal_probe(losses, default, lower_is_better=True))
    return found


def write_points(rows: list[dict[str, Any]], path: Path) -> None:
    """`params` is the number of weights. `active_params`, FLOPs / (6 tokens), is what a token passes through: without
    the input embedding, with attention. The laws are fitted to it, so that C = 6ND holds exactly; the two differ by
    less than a tenth in large models, and several times in small ones."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        columns = [name for name in rows[0] if name != "failed"]
        columns.insert(columns.index("params") + 1, "active_params")
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {"active_params": row["flops"] / (6 * row["tokens"])})


def write_json(path: Path, content: Any) -> None:
    """JSON proper: what is no number (an interval without samples) becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def isoflop_curves(fit: ScalingFit) -> list[dict[str, Any]]:
    """Each budget's parabola over the tokens that were tried, for figures."""
    curves = []
    for parabola in fit.parabolas:
        assert fit.points.budget is not None
        tried = fit.points.tokens[fit.points.budget == parabola.flops]
        tokens = np.geomspace(tried.min(), tried.max(), CURVE)
        curves.append({"flops": parabola.flops, "tokens": tokens.tolist(), "loss": parabola(tokens).tolist()})
    return curves


def forecast_largest(points: Points, seed: int) -> dict[str, Any]:
    """The losses of the largest budget's runs, forecast by the law through the smaller budgets (approach 3), and the
    lowest loss there, by the smaller minima; `problem` says why where there is no such law."""
    assert points.budget is not None
    largest = points.budget.max()
    rest, held = points.keep(points.budget < largest), points.keep(points.budget == largest)
    told = {"budget": largest, "fitted_runs": len(rest), "level": LEVEL}
    try:
        fit = fit_scaling(rest, seed=seed, level=LEVEL, approach="parametric")
    except PunaError as error:
        return told | {"problem": str(error), "runs": [], "lowest": None}
    runs = []
    for params, tokens, loss in zip(held.params.tolist(), held.tokens.tolist(), held.loss.tolist()):
        value, low, high = fit.predict_loss(params, tokens, LEVEL)
        runs.append(
            {"active_params": params, "tokens": tokens, "loss": loss, "forecast": value, "low": low, "high": high}
        )
    lowest = None
    minimum = next((p for p in fit_parabolas(points) if p.flops == largest and p.problem is None), None)
    if minimum and sum(p.problem is None for p in fit.parabolas) >= 3:
        value, low, high = fit.predict_lowest_loss(largest, LEVEL)
        lowest = {"loss": minimum.loss, "forecast": value, "low": low, "high": high}
    return told | {"problem": None, "runs": runs, "lowest": lowest}


def plan_shapes(fit: ScalingFit, flops: list[float], vocab_size: int, seq_len: int) -> list[dict[str, Any]]:
    """The compute-optimal model at each budget as a shape that can be trained, and the tokens that the budget pays."""
    plans = []
    for budget in flops:
        best = fit.recommend(budget)
        config = min(
            shapes(vocab_size, seq_len),
            key=lambda config: abs(math.log(flops_per_token(config, seq_len) / 6 / best.params.value)),
        )
        tokens = budget / flops_per_token(config, seq_len)
        active = flops_per_token(config, seq_len) / 6
        loss = fit.predict_loss(active, tokens)._asdict() if "parametric" in fit.approaches else None
        plan = {"flops": budget, "params": count_parameters(config), "tokens": tokens, "loss": loss}
        plans.append(plan | {"model": {name: getattr(config, name) for name in SHAPE}})
    return plans


def metrics(fit: ScalingFit, forecast: dict[str, Any]) -> dict[str, Any]:
    """Figures for summary.json."""
    chosen = fit[fit.preferred]
    exponent, low, high = (round(v, 4) for v in interval(chosen.frontier.exponent, chosen.samples.exponent, fit.level))
    found = {
        "scaling.runs": figure(len(fit.points)),
        "scaling.flops": figure(float(fit.points.flops.sum()), "FLOPs"),
        "scaling.tokens_exponent": figure(exponent, "", low, high, len(fit.points)),
    }
    if runs := forecast["runs"]:
        errors = [abs(run["forecast"] / run["loss"] - 1) for run in runs]
        inside = sum(run["low"] <= run["loss"] <= run["high"] for run in runs)
        found["scaling.forecast.error"] = figure(round(max(errors), 5), "share", n=len(runs))
        found["scaling.forecast.inside"] = figure(inside / len(runs), "share", n=len(runs))
    if lowest := forecast["lowest"]:
        found["scaling.forecast.lowest_error"] = figure(round(lowest["forecast"] / lowest["loss"] - 1, 5), "share")
    return found
