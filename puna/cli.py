"""The command line: run · plan · status · report · chat · serve · eval · export · corpus · scaling."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from puna.corpus.cli import app as corpus
from puna.errors import PunaError
from puna.evaluate import app as evaluate
from puna.finetune import finetune
from puna.log import console
from puna.recipe import load_recipe
from puna.run import BY_NAME, STAGES, Run, Stage
from puna.scaling.cli import app as scaling
from puna.scaling.sweep_cli import app as sweep
from puna.serve.cli import serve

app = typer.Typer(
    help="Raise a Llama: from raw web pages to a chat model that uses tools, by the Llama 3.1 recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(corpus, name="corpus")
app.add_typer(scaling, name="scaling")
app.add_typer(evaluate, name="eval")
scaling.add_typer(sweep, name="sweep")
app.command()(serve)
app.command()(finetune)

RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, for example recipes/tiny.toml.")]
WordsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[STAGE ...] [key.path=value ...]", help="Stages to make (default: all needed); overrides."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, for example runs/tiny.")]


def main() -> None:
    """Run the command line; what a user can mend ends in one message and exit status 1, without a traceback."""
    try:
        app()
    except PunaError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        sys.exit(130)


@app.command()
def run(recipe: RecipeArgument, words: WordsArgument = None) -> None:
    """Make what a recipe describes; what is already there is skipped, what is half done goes on."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from puna.train.launch import follow

        if follow():  # torchrun's process of rank 0 makes the artifacts, the others train with it
            return
    names, overrides = split_words(words)
    job = Run(load_recipe(recipe, overrides))
    console.print(f"[bold]{job.recipe.name}[/] in {job.folder}/")
    job.run(names, tell_stage)
    page = write_report(job)
    finished = {timing["stage"]: timing["minutes"] for timing in job.timings()}
    table = Table("stage", "minutes", box=None, title="minutes by stage", title_justify="left")
    for stage in STAGES:
        if stage.name in finished:
            table.add_row(stage.name, f"{finished[stage.name]:.2f}")
    table.add_row("total", f"{sum(finished.values()):.2f}")
    console.print(table)
    console.print(f"report: {page}\nfigures: {job.folder}/summary.json")
    if set(job.states().values()) <= {"done", "optional"}:
        console.print(f"talk to it: puna chat {job.folder}")


@app.command()
def plan(
    recipe: RecipeArgument,
    words: Annotated[list[str] | None, typer.Argument(metavar="[key.path=value ...]")] = None,
    machine: Annotated[str, typer.Option(help="`this`, or for example h100, '64 x 8 h100', '1 x rtx4090'.")] = "this",
    layout: Annotated[
        str, typer.Option(help="Of pretraining: tp=8,cp=1,pp=16,dp=128 and stages, micro, shard, recompute. Or a part.")
    ] = "",
    precision: Annotated[str, typer.Option(help="bf16 or fp8; int8 too with --serve.")] = "bf16",
    calibrate: Annotated[bool, typer.Option(help="Measure this recipe's model on this machine first.")] = False,
    tflops: Annotated[
        float | None, typer.Option(help="TFLOP/s a GPU (6ND), in place of our estimate.", min=0.001)
    ] = None,
    effective: Annotated[float | None, typer.Option(help="Share of the time that trains, 0 to 1.")] = None,
    failures: Annotated[float | None, typer.Option(help="Failures for each GPU and day.", min=0)] = None,
    storage: Annotated[float | None, typer.Option(help="GB/s that checkpoints are written with.", min=0.001)] = None,
    price_per_gpu_hour: Annotated[float | None, typer.Option(min=0)] = None,
    price_per_kwh: Annotated[float | None, typer.Option(min=0)] = None,
    pue: Annotated[float, typer.Option(help="Power of the building over that of the machines.", min=1)] = 1.1,
    serve: Annotated[bool, typer.Option("--serve", help="What serving the model takes, in place of training.")] = False,
    context: Annotated[int, typer.Option(help="With --serve: tokens of a sequence.", min=1)] = 8192,
    batch: Annotated[int, typer.Option(help="With --serve: sequences at once.", min=1)] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """What a recipe will take: layout, memory, time, failures, cost; or what serving takes. Needs no GPU."""
    from puna.plan import command

    names, overrides = split_words(words)
    if names:
        raise PunaError(f"puna plan takes overrides, no stages: {' '.join(names)}")
    if serve:
        lines = command.serve(load_recipe(recipe, overrides), machine, precision, context, batch, as_json)
    else:
        settings = command.settings(
            layout, precision, tflops, effective, failures, storage, price_per_gpu_hour, price_per_kwh, pue
        )
        lines = command.train(load_recipe(recipe, overrides), machine, settings, calibrate, as_json)
    for line in lines:
        if isinstance(line, dict):
            print(json.dumps(line, indent=2))
        else:
            console.print(line, highlight=False, soft_wrap=True)


@app.command()
def status(run: RunArgument) -> None:
    """Which stages of a run are done, running, interrupted, stale or missing; an optional one is made when named."""
    job = Run.open(run)
    minutes = {timing["stage"]: timing["minutes"] for timing in job.timings()}
    colours = {"done": "green", "running": "cyan", "interrupted": "yellow", "stale": "yellow"}
    table = Table("stage", "state", "minutes", "needs", box=None)
    for name, state in job.states().items():
        took = f"{minutes[name]:.2f}" if name in minutes else ""
        table.add_row(name, f"[{colours.get(state, 'dim')}]{state}[/]", took, ", ".join(BY_NAME[name].needs))
    console.print(table)


@app.command()
def report(run: RunArgument) -> None:
    """Write RUN/report/index.html from what the run has so far."""
    console.print(f"report: {write_report(Run.open(run))}")


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a Hugging Face model directory.")],
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this, print the reply and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    tools: Annotated[
        list[str] | None,
        typer.Option(help="python, brave, wolfram, calculator, FILE.py, mcp:COMMAND or mcp:URL; repeat for more."),
    ] = None,
    no_tools: Annotated[bool, typer.Option("--no-tools", help="Give the model no tool at all.")] = False,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total mass.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    brave_key: Annotated[str | None, typer.Option(help="A key or a file with one; else BRAVE_API_KEY.")] = None,
    wolfram_key: Annotated[str | None, typer.Option(help="A key or a file with one; else WOLFRAM_APP_ID.")] = None,
    tp: Annotated[int, typer.Option(min=1, help="Devices that share each layer, under torchrun.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Groups of them that share the layers out.")] = 1,
) -> None:
    """Talk to a model: replies stream, calls of tools are shown and executed (a calculator, unless --tools)."""
    from puna.chat import Conversation, converse
    from puna.infer.engine import Sampling
    from puna.infer.parallel import load_engine
    from puna.tools import open_toolbox

    if tools and no_tools:
        raise PunaError("--tools and --no-tools contradict each other; drop one")
    names = [] if no_tools else tools or ["calculator"]
    sampling = Sampling(max_tokens, temperature, top_p, seed)
    engine = load_engine(find_model(model), tp, pp)
    if engine is None:
        return  # torchrun's process of rank 0 talked
    try:
        with open_toolbox(names, brave_key=brave_key, wolfram_key=wolfram_key) as toolbox:
            converse(Conversation(engine, toolbox, sampling, system), message)
    finally:
        engine.close()


@app.command()
def export(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run, a Hugging Face model directory, or a checkpoint (step-N)."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to make; it must not exist.")],
    to: Annotated[
        str,
        typer.Option(help="hf (safetensors), meta (consolidated.*.pth, params.json), gguf (llama.cpp) or fp8 (vLLM)."),
    ] = "hf",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32; q8_0 too with --to gguf.")] = "bf16",
    text: Annotated[
        Path | None, typer.Option(help="With --to fp8: text to measure the drift on (default: what the run held out).")
    ] = None,
    reward_model: Annotated[
        Path | None, typer.Option(help="With --to fp8: a reward model that scores answers.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="With --reward-model: what to answer, JSONL of chats.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Of a checkpoint that lies in no run: a directory with its tokenizer.")
    ] = None,
) -> None:
    """Write a model for other programs, with its tokenizer, licence files and a model card."""
    from puna.export import export_model
    from puna.unpack import is_checkpoint

    model = model if is_checkpoint(model) else find_model(model)
    figures = export_model(model, out, to, dtype, text, reward_model, prompts, tokenizer)
    for name, value in figures.items():
        console.print(f"{name.replace('_', ' ')}: {value:,.5g}", highlight=False)
    console.print(f"{to} model in {out}/")


def split_words(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Stage names and overrides; PunaError for a word that is neither."""
    names = [word for word in words or [] if "=" not in word]
    for name in names:
        if name not in BY_NAME:
            raise PunaError(f"{name!r} is neither a stage ({', '.join(BY_NAME)}) nor an override (key.path=value)")
    return names, [word for word in words or [] if "=" in word]


def tell_stage(stage: Stage, fresh: bool) -> None:
    console.print(f"[bold]{stage.name}[/]" + (" [dim]is there already[/]" if fresh else ""))


def write_report(job: Run) -> Path:
    from puna.report.page import write_report as write

    return write(job)


def find_model(path: Path) -> Path:
    """The model directory that a path means: itself, or the last model that a run has made."""
    if (path / "config.json").is_file():
        return path
    if (path / "recipe.toml").is_file():
        job = Run.open(path)
        for name in ("rounds", "dpo", "sft", "extend", "pretrain"):
            if job.manifest(name):
                return job.folder / name
        raise PunaError(f"the run {path} has no model yet; `puna status {path}` shows how far it is")
    raise PunaError(f"{path} is neither a run (recipe.toml) nor a model directory (config.json)")
