"""`puna scaling sweep`: the runs of a sweep one by one, as jobs of whatever scheduler there is."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from puna.errors import PunaError
from puna.log import console
from puna.run import Run

app = typer.Typer(help="The runs of a scaling sweep, one by one.", no_args_is_help=True)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run whose shards are made.")]


@app.command("list")
def list_runs(run: RunArgument) -> None:
    """The runs by their index, what each is, and its loss where it is finished."""
    from puna.scaling.sweep import read_result, sweep_runs

    job, inputs, folder = _open(run)
    table = Table(*("index", "for", "FLOPs", "parameters", "tokens", "steps", "batch", "peak lr", "loss"), box=None)
    for index, each in enumerate(sweep_runs(job.recipe, inputs)):
        result = read_result(each, folder)
        loss = "" if result is None else "[red]failed[/]" if result["failed"] else f"{result['loss']:.4f}"
        shape = (f"{each.budget:.3g}", f"{each.params:,}", f"{each.tokens:,}", f"{each.steps:,}")
        schedule = (f"{each.options.batch_tokens:,}", f"{each.options.peak_lr:g}")
        table.add_row(str(index), each.purpose, *shape, *schedule, loss)
    console.print(table)
    console.print(
        f"one of them: puna scaling sweep run {run} INDEX\nthe law: puna run {run}/recipe.toml scaling", soft_wrap=True
    )


@app.command("run")
def run_one(
    run: RunArgument,
    index: Annotated[int, typer.Argument(metavar="INDEX", help="Which; `puna scaling sweep list RUN` shows them.")],
) -> None:
    """Make one run, on one process; `puna run RECIPE scaling` takes it as made. Killed, it goes on when run again."""
    from puna.scaling.sweep import make_run, sweep_runs

    job, inputs, folder = _open(run)
    runs = sweep_runs(job.recipe, inputs)
    if not 0 <= index < len(runs):
        raise PunaError(f"there is no run {index}; the sweep of {run} has the runs 0 to {len(runs) - 1}")
    result = make_run(runs[index], inputs, folder, job.folder / "log")
    if result["failed"]:
        raise PunaError(f"{runs[index].name} failed: {result['failed']}")
    console.print(f"{runs[index].name}: held-out loss {result['loss']:.4f} nats a token", soft_wrap=True)


def _open(folder: Path) -> tuple[Run, dict[str, Path], Path]:
    """A run, what its sweep reads, and where its runs lie."""
    from puna.scaling.stage import sweep_folder

    job = Run.open(folder)
    inputs = {name: job.folder / name for name in ("shards", "tokenizer")}
    return job, inputs, sweep_folder(inputs)
