"""puna eval: a model's score on a benchmark whose data the user has."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from puna.errors import PunaError
from puna.log import console

app = typer.Typer(help="Score a model on a benchmark whose data you have.", no_args_is_help=True)


@app.callback()
def benchmarks() -> None:
    """Keep the benchmark's name in the command, with one benchmark as with more."""


@app.command()
def bfcl(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a Hugging Face model directory.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The folder of CATEGORY.jsonl[.gz], with answers.")],
    category: Annotated[list[str] | None, typer.Option(help="Repeat for more; default: all that are there.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many questions of each category.", min=1)] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.", min=1)] = 512,
    replies: Annotated[Path | None, typer.Option(help="Write each reply and what is wrong with it, as JSONL.")] = None,
) -> None:
    """Calls of functions by the rules of the Berkeley Function-Calling Leaderboard, with 95% intervals."""
    from puna.cli import find_model
    from puna.evals.bfcl import SINGLE_TURN, load_cases, score
    from puna.infer.engine import Engine, Sampling

    there = [name for name in SINGLE_TURN if any(data.glob(f"{name}.jsonl*"))]
    if not (category or there):
        raise PunaError(f"{data} has none of BFCL's files, {SINGLE_TURN[0]}.jsonl and so on")
    engine = Engine.load(find_model(model))
    table = Table("category", "right", "95% interval", "questions", box=None)
    lines: list[str] = []
    for name in category or there:
        result, told = score(engine, load_cases(data, name)[:limit], Sampling(max_tokens=max_tokens))
        table.add_row(
            name, f"{result['value']:.3f}", f"{result['low']:.3f} to {result['high']:.3f}", f"{result['n']:,}"
        )
        lines += [json.dumps({"category": name, **one}, ensure_ascii=False) + "\n" for one in told]
    if replies:
        replies.write_text("".join(lines), encoding="utf-8")
    console.print(table)
