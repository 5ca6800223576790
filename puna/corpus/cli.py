"""The command line of the corpus's classifiers: label documents, train a classifier on labels, see how good it is."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from puna.errors import PunaError
from puna.log import Log, console

app = typer.Typer(help="Label documents, train classifiers of quality, topic or part on the labels, test them.")

LabelsArgument = Annotated[Path, typer.Argument(metavar="LABELS", help="Records with `label` and `text`.")]
SeedOption = Annotated[int, typer.Option(help="Of the choice and the order of the examples.")]


@app.command()
def label(
    documents: Annotated[str, typer.Argument(help="Records with `text`: JSONL, Parquet, text files; or a folder.")],
    out: Annotated[Path, typer.Argument(help="The JSONL file of labels; one that is there is gone on with.")],
    model: Annotated[str, typer.Option(help="The model to ask.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint, up to /v1.")] = "http://localhost:8000/v1",
    task: Annotated[
        str, typer.Option(help="quality, quality-scale, topic, code, reasoning, or a TOML file.")
    ] = "quality",
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds the key.")] = None,
    limit: Annotated[int | None, typer.Option(help="Label so many documents, chosen by their hash.")] = None,
    characters: Annotated[int, typer.Option(help="How much of a document is shown.")] = 8000,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.")] = 120.0,
    tries: Annotated[int, typer.Option(help="Requests for one document, at most.")] = 6,
    max_tokens: Annotated[int, typer.Option(help="Longest answer; models that think aloud need more.")] = 32,
    price_in: Annotated[float, typer.Option(help="Of a million prompt tokens, to tell the cost.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Of a million completion tokens.")] = 0.0,
    seed: SeedOption = 0,
) -> None:
    """Ask a chat model for a label of each document. Stopped or killed, the same command goes on."""
    from puna.corpus import label as labels
    from puna.corpus.tasks import find_task
    from puna.endpoint import Endpoint

    key = os.environ.get(key_env) if key_env else None
    if key_env and not key:
        raise PunaError(f"--key-env {key_env}: there is no such environment variable")
    named = f"--url, --model {model} and the key (--key-env)"
    endpoint = Endpoint(url, model, key, concurrency, timeout, tries, max_tokens=max_tokens, named=named)
    chosen = labels.read_documents(documents)
    if limit:
        chosen = iter(labels.choose(chosen, limit, seed))
    account = labels.label(chosen, find_task(task), endpoint, out, _log(out), characters)
    for failure in account.failures:
        console.print(f"  failed: {failure}", highlight=False, markup=False, soft_wrap=True)
    cost = (account.tokens_in * price_in + account.tokens_out * price_out) / 1e6
    console.print(
        f"{account.labelled:,} labelled, {account.already:,} were already, {account.failed:,} failed, "
        f"{account.repeated:,} requests repeated; {account.tokens_in:,} tokens in, {account.tokens_out:,} out"
        + (f", cost {cost:.2f}" if cost else ""),
        soft_wrap=True,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="The model to write: a file (fasttext) or a directory (transformer).")],
    labels: Annotated[Path | None, typer.Option(help="Records with `label` and `text`.")] = None,
    positives: Annotated[
        str | None, typer.Option(help="Instead: pages that should be kept, records with `text`.")
    ] = None,
    negatives: Annotated[str | None, typer.Option(help="Beside --positives: the corpus at hand.")] = None,
    kind: Annotated[Literal["fasttext", "transformer"], typer.Option()] = "fasttext",
    start: Annotated[Path | None, typer.Option(help="transformer: a model to begin with.")] = None,
    preset: Annotated[str | None, typer.Option(help="transformer: new weights; only the tokenizer of --start.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the examples; 3 (transformer) by default.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="0.5 (fasttext) or 2e-4 (transformer) by default.")
    ] = None,
    seq_len: Annotated[int, typer.Option(help="transformer: where texts are cut, in tokens.")] = 512,
    batch_rows: Annotated[int, typer.Option(help="transformer: rows of seq_len in a step.")] = 8,
    limit: Annotated[int, typer.Option(help="Examples (of each kind, with --positives) at most.")] = 100_000,
    held_out: Annotated[float, typer.Option(help="Share of the examples to test on.")] = 0.1,
    seed: SeedOption = 0,
) -> None:
    """Train a classifier and tell how good it is on the examples that it did not see."""
    from puna.corpus.examples import evaluate, quality_examples
    from puna.corpus.label import choose, read_labels
    from puna.recipe import Training

    if (labels is None) == (positives is None) or (positives is None) != (negatives is None):
        raise PunaError("give either --labels, or --positives and --negatives")
    if labels:
        examples = choose(read_labels(labels), limit, seed)
    else:
        examples = quality_examples(str(positives), str(negatives), limit, seed)
    held = int(len(examples) * held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fasttext":
        from puna.corpus.linear import train_fasttext

        train_fasttext(examples[held:], out, epochs=epochs, learning_rate=learning_rate or 0.5, seed=seed)
    else:
        from puna.corpus.scorer import train_scorer

        if not start:
            raise PunaError("a transformer needs --start: a model, or with --preset a tokenizer")
        if out.exists():
            raise PunaError(f"{out} exists; name another directory, or remove it")
        rows = {"seq_len": seq_len, "batch_rows": batch_rows}
        options = Training.model_validate(
            rows | {"peak_lr": learning_rate or 2e-4, "warmup_steps": 20, "compile": "off"}
        )
        train_scorer(examples[held:], start, out, options, epochs or 3, seed, _log(out), preset)
    console.print(f"{out}: trained on {len(examples) - held:,} examples", soft_wrap=True)
    if held:
        _show(evaluate(str(out), examples[:held]))


@app.command()
def test(
    model: Annotated[str, typer.Argument(help="A classifier; PATH#LABEL tests one label against the others.")],
    labels: LabelsArgument,
) -> None:
    """How well a classifier agrees with labels: area under the curve, precision and recall, or accuracy."""
    from puna.corpus.examples import evaluate
    from puna.corpus.label import read_labels

    _show(evaluate(model, list(read_labels(labels))))


def _show(result: dict[str, Any]) -> None:
    table = Table(box=None, title=f"{result['examples']:,} examples", title_justify="left")
    if "auc" in result:
        console.print(f"area under the curve {result['auc']:.3f}")
        for name in ("threshold", "precision", "recall"):
            table.add_column(name)
        for row in result["thresholds"]:
            table.add_row(*(f"{value:.2f}" for value in row))
    else:
        console.print(f"accuracy {result['accuracy']:.3f}")
        for name in ("label", "examples", "precision", "recall"):
            table.add_column(name)
        for name, count, precision, recall in result["labels"]:
            table.add_row(name, f"{count:,}", f"{precision:.2f}", f"{recall:.2f}")
    console.print(table)


def _log(out: Path) -> Log:
    return Log(out.parent / "log", out.name)
