"""The scaling laws on the run's page: curves at equal compute, the frontier, a test of the forecast, and the plan."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from puna.report.figures import Band, Curve, Dot, Place, Row, dot_chart, log_chart, short
from puna.run import Run

CYCLE = ("series1", "series2", "series3", "plain")
"""Styles of budgets, in turn; each curve carries its budget as well."""
APPROACHES = {"isoflop": "IsoFLOP parabolas", "parametric": "parametric law", "envelope": "envelope"}


def scaling(run: Run) -> dict[str, Any] | None:
    """Figures and tables of the scaling stage."""
    if run.manifest("scaling") is None:
        return None
    folder = run.folder / "scaling"
    laws, forecast = (json.loads((folder / f"{name}.json").read_text()) for name in ("fit", "forecast"))
    points = read_points(folder / "points.csv")
    data = folder / "data.json"
    return {
        "isoflop": isoflop(points, laws),
        "frontiers": [frontier(laws, "tokens"), frontier(laws, "params")],
        "laws": laws,
        "exponents": exponents(laws),
        "lines": [(style, APPROACHES[name]) for name, style in line_styles(laws).items()],
        "forecast": forecast,
        "forecast_figure": forecast_figure(forecast),
        "worst": max((abs(each["forecast"] / each["loss"] - 1) for each in forecast["runs"]), default=None),
        "inside": sum(each["low"] <= each["loss"] <= each["high"] for each in forecast["runs"]),
        "span": (min(p["flops"] for p in points), max(p["flops"] for p in points)),
        "data": json.loads(data.read_text()) if data.exists() else None,
    }


def read_points(path: Path) -> list[dict[str, float]]:
    """The IsoFLOP runs: budget, FLOPs, tokens, parameters and loss."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["purpose"] == "isoflop"]
    names = ("budget", "flops", "tokens", "params", "active_params", "loss", "bits_per_byte")
    return [{name: float(row[name]) for name in names} for row in rows]


def isoflop(points: list[dict[str, float]], laws: dict[str, Any]) -> Any:
    """Held-out loss over tokens, a curve for each budget."""
    budgets = sorted({point["budget"] for point in points})
    style = {budget: CYCLE[number % len(CYCLE)] for number, budget in enumerate(budgets)}
    places = [Place(point["tokens"], point["loss"], style[point["budget"]]) for point in points]
    curves = [
        Curve(np.array(curve["tokens"]), np.array(curve["loss"]), style[curve["flops"]], scientific(curve["flops"]))
        for curve in laws["isoflop"]
    ]
    return log_chart(
        "Loss at equal compute", curves, places, "training tokens", "held-out loss, nats a token", log_y=False
    )


def frontier(laws: dict[str, Any], what: str) -> Any:
    """Optimal tokens or active parameters over compute: the minima, and the law of every approach."""
    places = []
    for budget in laws["budgets"]:
        if budget["problem"] is None:
            tokens = budget["best_tokens"]
            value = tokens if what == "tokens" else budget["flops"] / laws["flops_per_param_token"] / tokens
            places.append(Place(budget["flops"], value, "series1"))
    curves, bands = [], []
    styles = line_styles(laws)
    for name in styles:
        found = [each for each in laws["recommendations"] if each["approach"] == name]
        flops = np.array([each["flops"] for each in found])
        curves.append(Curve(flops, np.array([each[what]["value"] for each in found]), styles[name]))
        if name == laws["preferred"] and all(each[what]["low"] is not None for each in found):
            low, high = (np.array([each[what][end] for each in found]) for end in ("low", "high"))
            bands.append(Band(flops, low, high, "series1"))
    label = "optimal tokens" if what == "tokens" else "optimal active parameters"
    title = f"Compute and {label}"
    return log_chart(title, curves, places, "training compute, FLOPs", label, bands, x_number=scientific)


def line_styles(laws: dict[str, Any]) -> dict[str, str]:
    """The style of each approach's line: solid for the preferred one."""
    others = [name for name in APPROACHES if name in laws["approaches"] and name != laws["preferred"]]
    dashed = {name: f"{style} dashed" for name, style in zip(others, ("series2", "series3"))}
    return {laws["preferred"]: "series1"} | dashed


def exponents(laws: dict[str, Any]) -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """By approach the exponents of tokens and of parameters in compute."""
    found = laws["approaches"]
    return [(APPROACHES[n], found[n]["tokens_exponent"], found[n]["params_exponent"]) for n in APPROACHES if n in found]


def forecast_figure(forecast: dict[str, Any]) -> Any:
    """Each run of the largest budget: its loss, and what the smaller budgets foretold."""
    rows = []
    for each in forecast["runs"]:
        items = [
            Dot(each["forecast"], f"{each['forecast']:.3f}", "series2", each["low"], each["high"]),
            Dot(each["loss"], f"{each['loss']:.3f}", "series1"),
        ]
        rows.append(Row(f"{short(each['active_params'])} active parameters, {short(each['tokens'])} tokens", items))
    if not rows:
        return None
    values = [each[name] for each in forecast["runs"] for name in ("loss", "forecast", "low", "high")]
    margin = 0.05 * (max(values) - min(values))
    title = "Largest budget: forecast and actual"
    return dot_chart(title, rows, "held-out loss, nats a token", min(values) - margin, max(values) + margin)


def scientific(value: float) -> str:
    """3e+10 is 3e10."""
    return f"{value:.2g}".replace("e+", "e")
