"""`puna scaling`: fit laws to runs, plan a model, forecast a benchmark."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from puna.errors import PunaError

app = typer.Typer(
    help="Scaling laws: fit them on small runs, plan the large one, forecast its benchmarks.", no_args_is_help=True
)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

PointsArgument = Annotated[Path, typer.Argument(metavar="POINTS", help="A CSV, .json or .jsonl table of runs.")]
ColumnsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=COLUMN ...]", help="Which column holds what, for example params='Model Size'."),
]
Where = Annotated[list[str] | None, typer.Option("--where", help="COLUMN=VALUE: only these rows. May be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write JSON, CSV and figures (SVG, PNG) into this folder.")]
Level = Annotated[float, typer.Option(help="Level of the intervals.")]
Seed = Annotated[int, typer.Option(help="Of the bootstrap.")]
Drop = Annotated[bool, typer.Option("--drop-invalid", help="Leave out rows with NaN, infinite or negative values.")]
NoCheck = Annotated[bool, typer.Option("--no-check", help="Take the table's units as they are.")]


@app.command()
def fit(
    points: PointsArgument,
    columns: ColumnsArgument = None,
    where: Where = None,
    flops: Annotated[list[float] | None, typer.Option(help="Recommend at this budget. May be repeated.")] = None,
    approach: Annotated[str | None, typer.Option(help="Prefer isoflop, parametric or envelope.")] = None,
    near: Annotated[
        float, typer.Option(help="Parabolas go through runs up to this share above the lowest loss.")
    ] = 0.1,
    drop_highest: Annotated[int, typer.Option(help="Leave out so many of the highest losses.")] = 0,
    drop_invalid: Drop = False,
    no_check: NoCheck = False,
    level: Level = 0.95,
    bootstraps: Annotated[int, typer.Option(help="Samples of the runs.")] = 1000,
    seed: Seed = 0,
    json_out: Json = False,
    folder: Out = None,
) -> None:
    """Fit all approaches: exponents, optimal parameters and tokens with intervals, and what speaks against them."""
    from puna.scaling.fit import fit_scaling
    from puna.scaling.output import to_dict

    runs = _read(points, columns, where, drop_invalid, no_check).without_highest_losses(drop_highest)
    fitted = fit_scaling(runs, bootstraps, seed, level, approach, near)
    targets = flops or [float(runs.flops.max()) * times for times in (10, 100)]
    result = to_dict(fitted, targets)
    if folder:
        from puna.scaling.figures import save_fit_figures

        _write(folder / "fit.json", result)
        _write_recommendations(folder / "recommendations.csv", result["recommendations"])
        save_fit_figures(fitted, folder, targets[-1])
    if json_out:
        _print_json(result)
        return
    out.print(_exponent_table(result))
    out.print(_recommendation_table(result["recommendations"], level))
    _print_warnings(result["warnings"])


@app.command()
def plan(
    flops: Annotated[float | None, typer.Option(help="Training budget in FLOPs.")] = None,
    gpus: Annotated[float | None, typer.Option(help="Or: how many GPUs,")] = None,
    days: Annotated[float | None, typer.Option(help="for how many days,")] = None,
    tflops: Annotated[float, typer.Option(help="at how many TFLOP/s each (the paper's H100: 400),")] = 400.0,
    effective: Annotated[float, typer.Option(help="training this share of the time (the paper: 0.9).")] = 0.9,
    law: Annotated[str | None, typer.Option(help="llama3, llama3-text, chinchilla, chinchilla-replication.")] = None,
    points: Annotated[Path | None, typer.Option(help="A table of runs, fitted on the spot.")] = None,
    saved: Annotated[Path | None, typer.Option("--fit", help="A fit.json.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="NAME=COLUMN of --points. May be repeated.")] = None,
    where: Where = None,
    approach: Annotated[str | None, typer.Option(help="Prefer isoflop, parametric or envelope.")] = None,
    tokens_per_param: Annotated[float | None, typer.Option(help="Also: a model of this ratio.")] = None,
    params: Annotated[float | None, typer.Option(help="Also: a model of this many parameters.")] = None,
    served_tokens: Annotated[float | None, typer.Option(help="Also: cheapest over a life of so many tokens.")] = None,
    relative_cost: Annotated[float, typer.Option(help="Price of a served FLOP in training FLOPs.")] = 1.0,
    level: Level = 0.95,
    seed: Seed = 0,
    json_out: Json = False,
) -> None:
    """What to train with a budget: by runs of your own (--points, --fit) or a published law (--law)."""
    from puna.scaling.advise import advise, basis_of_file, basis_of_fit, basis_of_published, budget_flops
    from puna.scaling.fit import fit_scaling
    from puna.scaling.published import published

    if (flops is None) == (gpus is None or days is None):
        raise PunaError("give the budget as --flops 3.8e25, or as --gpus 512 --days 20")
    if sum(given is not None for given in (law, points, saved)) > 1:
        raise PunaError("--law, --points and --fit exclude each other; give one")
    if flops is None:
        assert gpus is not None
        assert days is not None
        flops = budget_flops(gpus, days, tflops, effective)
    if points:
        basis = basis_of_fit(fit_scaling(_read(points, column, where), 1000, seed, level, approach), str(points))
    elif saved:
        basis = basis_of_file(saved)
    else:
        basis = basis_of_published(law or "llama3", published(law or "llama3"))
    result = advise(basis, flops, tokens_per_param, params, served_tokens, relative_cost)
    if json_out:
        _print_json(result)
        return
    out.print(escape(basis.source))
    out.print(_plan_table(result))
    _print_warnings(result["warnings"])


@app.command()
def forecast(
    table: PointsArgument,
    columns: ColumnsArgument = None,
    where: Where = None,
    params: Annotated[float, typer.Option(help="Parameters of the model to forecast.")] = float("nan"),
    tokens: Annotated[float, typer.Option(help="Its training tokens.")] = float("nan"),
    flops: Annotated[float, typer.Option(help="Or its training FLOPs, for the linear law.")] = float("nan"),
    law: Annotated[
        str, typer.Option(help="power: in parameters and tokens; linear: in log FLOPs (the paper).")
    ] = "power",
    average: Annotated[int, typer.Option(help="Checkpoints averaged at the end of a run.")] = 5,
    bootstraps: Annotated[int, typer.Option(help="Samples of the runs.")] = 300,
    level: Level = 0.95,
    seed: Seed = 0,
    json_out: Json = False,
    folder: Out = None,
) -> None:
    """Forecast a benchmark in two steps: size -> loss of the right answer -> accuracy. One row for each checkpoint."""
    from puna.scaling.forecast import Target, fit_forecast
    from puna.scaling.output import forecast_dict
    from puna.scaling.task_runs import read_task_runs

    runs = read_task_runs(table, _pairs(columns, "NAME=COLUMN"), _pairs(where, "COLUMN=VALUE"))
    target = Target(params, tokens, flops)
    fitted = fit_forecast(runs, law, bootstraps, seed, level, average)
    result = forecast_dict(fitted, target)
    if folder:
        from puna.scaling.figures import forecast_figure, save

        _write(folder / "forecast.json", result)
        save(forecast_figure(fitted, target), folder / "forecast")
    if json_out:
        _print_json(result)
        return
    for name in ("loss", "accuracy"):
        span = result[name]
        out.print(f"{name} {span['value']:.4f}  ({level:.0%}: {span['low']:.4f} to {span['high']:.4f})")
    _print_warnings(result["warnings"])


def _read(points: Path, columns: list[str] | None, where: list[str] | None, drop: bool = False, no_check: bool = False):
    from puna.scaling.points import NAMES, Columns, read_points

    named = _pairs(columns, "NAME=COLUMN")
    unknown = named.keys() - NAMES.keys()
    if unknown:
        raise PunaError(f"no such quantity: {', '.join(sorted(unknown))}; name columns of {', '.join(NAMES)}")
    return read_points(points, Columns(**named, where=_pairs(where, "COLUMN=VALUE")), drop, not no_check)


def _pairs(words: list[str] | None, form: str) -> dict[str, str]:
    pairs = {}
    for word in words or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise PunaError(f"{word!r} is not of the form {form}")
        pairs[name] = value
    return pairs


def _print_json(result: dict[str, Any]) -> None:
    typer.echo(json.dumps(result, indent=2, allow_nan=False))


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_recommendations(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        parts = [f"{name}{end}" for name in ("params", "tokens", "loss") for end in ("", "_low", "_high")]
        writer.writerow(["flops", "approach", *parts])
        for row in rows:
            spans = [row[name] or {} for name in ("params", "tokens", "loss")]
            writer.writerow(
                [row["flops"], row["approach"], *(s.get(e, "") for s in spans for e in ("value", "low", "high"))]
            )


def _exponent_table(result: dict[str, Any]) -> Table:
    table = Table("approach", "tokens ~ C^", "interval", "params ~ C^", "interval", box=None)
    for name, approach in result["approaches"].items():
        mark = " *" if name == result["preferred"] else ""
        cells = []
        for exponent in (approach["tokens_exponent"], approach["params_exponent"]):
            cells += [f"{exponent['value']:.4f}", _span(exponent, lambda x: f"{x:.3f}")]
        table.add_row(name + mark, *cells)
    return table


def _recommendation_table(rows: list[dict[str, Any]], level: float) -> Table:
    from puna.scaling.samples import human, plain

    table = Table("FLOPs", "approach", "params", f"{level:.0%}", "tokens", f"{level:.0%}", "loss", box=None)
    for row in rows:
        loss = f"{row['loss']['value']:.4f}" if row["loss"] else ""
        sizes = [cell for name in ("params", "tokens") for cell in (human(row[name]["value"]), _span(row[name], human))]
        table.add_row(plain(f"{row['flops']:.4g}"), row["approach"], *sizes, loss)
    return table


def _plan_table(result: dict[str, Any]) -> Table:
    from puna.scaling.samples import human, plain

    table = Table("model", "params", "tokens", "tokens/param", "training FLOPs", "loss", box=None)

    def add(name: str, params: float, tokens: float, flops: float, loss: float | None) -> None:
        shown = f"{loss:.4f}" if loss is not None else ""
        table.add_row(name, human(params), human(tokens), f"{tokens / params:.3g}", plain(f"{flops:.4g}"), shown)

    best = result["recommended"]
    loss = best["loss"]["value"] if best["loss"] else None
    add("compute-optimal", best["params"]["value"], best["tokens"]["value"], best["flops"], loss)
    if best["params"]["low"] is not None:
        table.add_row("  interval", _span(best["params"], human), _span(best["tokens"], human))
    for name, model in result["alternatives"].items():
        add(name, **{key: model[key] for key in ("params", "tokens", "loss")}, flops=model["train_flops"])
    if "serving" in result:
        model = result["serving"]["model"]
        name = f"serves {human(result['serving']['served_tokens'])} tokens, same loss"
        add(name, model["params"], model["tokens"], model["train_flops"], model["loss"])
        table.add_row(f"  saves {result['serving']['saved']:.1%} of the whole")
    return table


def _span(span: dict[str, float], form) -> str:
    return f"{form(span['low'])} to {form(span['high'])}" if span["low"] is not None else ""


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}")
