"""What the sections of the page show: each reads the artifacts it is about, and is None while they are not made."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup

from puna.errors import PunaError
from puna.report.figures import Bar, Curve, Dot, Row, bar_chart, dot_chart, line_chart, smooth, thin
from puna.run import Metrics, Run
from puna.train.batches import blends_of, share_out
from puna.train.clock import CAUSES, read_clock

MODELS = {"pretrain": "pretrained", "sft": "after SFT", "dpo": "after DPO", "rounds": "after the rounds"}
STYLES = {"pretrain": "series1", "sft": "series2", "dpo": "series3", "rounds": "series4"}
TASKS = {
    "tools.single.on": "Arithmetic with the calculator",
    "tools.single.sampled": "Arithmetic with the calculator, sampled",
    "tools.single.off": "Arithmetic without a tool",
    "chat.language": "Which language is this?",
    "chat.title": "Which of four titles fits?",
}
CHANCE = {"chat.title": 0.25}
"""Share that guessing gets right."""
STEPS = {
    "read": "what could not be read",
    "block": "addresses on block lists",
    "extract": "pages without text",
    "language": "languages that were not asked for",
    "url": "older versions of an address",
    "exact": "equal texts",
    "near": "nearly equal texts (MinHash)",
    "lines": "nothing but lines that are everywhere",
    "filter": "quality rules",
    "safety": "unsafe pages",
    "pii": "too much personal data",
    "quality": "classifiers of quality",
    "decontaminate": "examples of evaluation sets",
    "topic": "topics with more than their share",
}
EXAMPLES = 3
"""Dropped documents shown for each reason."""


# -- corpus ------------------------------------------------------------------------------------------------------------


def funnel(run: Run) -> dict[str, Any] | None:
    """Pages from raw to kept: the figure, the reasons with examples, and what was kept by part and language."""
    if run.manifest("corpus") is None:
        return None
    counts = json.loads((run.folder / "corpus" / "funnel.json").read_text(encoding="utf-8"))
    pages, kept = counts["steps"][0]["in"], counts["steps"][-1]["out"]
    rows, reasons, left = [Row("pages", [Bar(pages, f"{pages:,}", "plain")])], [], pages
    told = dropped(run.folder / "corpus" / "dropped.parquet")
    for step in counts["steps"]:
        for reason, count in sorted(step["dropped"].items(), key=lambda item: -item[1]):
            rows.append(Row(reason, [Bar(left, f"−{count:,}", "series2", left - count)]))
            left -= count
            reasons.append({"step": step["step"], "reason": reason, "count": count, **told.get(reason, {})})
    rows.append(Row("kept", [Bar(kept, f"{kept:,}", "series1")]))
    return {
        "figure": bar_chart("Pages dropped at each step, by reason", rows, "pages", pages),
        "pages": pages,
        "kept": kept,
        "reasons": reasons,
        "steps": STEPS,
        "account": (run.folder / "corpus" / "account.html").is_file(),
        "tables": [("Part", counts["parts"]), ("Language", counts["languages"])],
    }


def dropped(path: Path) -> dict[str, dict[str, Any]]:
    """For each reason its languages, commonest first, and a few of the documents."""
    table = pq.read_table(path, columns=["reason", "language"])
    grouped = table.group_by(["reason", "language"]).aggregate([([], "count_all")]).to_pylist()
    told: dict[str, dict[str, Any]] = {}
    for group in sorted(grouped, key=lambda g: (-g["count_all"], g["language"])):
        reason = told.setdefault(group["reason"], {"languages": [], "examples": []})
        if group["language"]:
            reason["languages"].append((group["language"], group["count_all"]))
    places: dict[str, list[int]] = {}
    for place, reason in enumerate(table["reason"].to_pylist()):
        if len(places.setdefault(reason, [])) < EXAMPLES:
            places[reason].append(place)
    wanted = sorted(place for found in places.values() for place in found)
    for row in rows_at(path, wanted):
        row["text"] = re.sub(r"\s*\n\s*", " ⏎ ", row["text"].strip())  # a list of single words is a short line, too
        told[row["reason"]]["examples"].append(row)
    return told


def rows_at(path: Path, places: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a parquet file by their places, in order; only the row groups that hold them are read."""
    columns = ["url", "origin", "title", "language", "characters", "reason", "detail", "text"]
    rows, first = [], 0
    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            last = first + file.metadata.row_group(number).num_rows
            if here := [place - first for place in places if first <= place < last]:
                rows += file.read_row_group(number, columns).take(pa.array(here)).to_pylist()
            first = last
    return rows


def mix(run: Run) -> dict[str, Any] | None:
    """Planned and real share of each part."""
    if run.manifest("shards") is None or run.manifest("corpus") is None:
        return None
    knobs = run.recipe.pretrain
    shards = json.loads((run.folder / "shards" / "shards.json").read_text(encoding="utf-8"))["parts"]
    documents = {part: counts["documents"] for part, counts in shards.items()}
    tokens = {part: counts["tokens"] for part, counts in shards.items()}
    blends = blends_of(knobs)
    parts = list({part: None for blend in blends for part, share in blend.mix.items() if share > 0 and part in tokens})
    rows = sum(blend.rows for blend in blends)
    planned = {part: sum(blend.rows * blend.mix.get(part, 0.0) for blend in blends) / rows for part in parts}
    lines = []
    trained = dict.fromkeys(parts, 0)
    if run.manifest("pretrain"):
        lengths = {part: tokens[part] for part in parts}
        with suppress(PunaError):  # the recipe was changed to what these shards do not allow
            pieces, counts = share_out(run.folder / "shards", lengths, blends, knobs.seq_len, knobs.max_epochs)
            for piece, *taken in zip(pieces, *counts):
                trained[piece.part] += sum(taken) * knobs.seq_len
    for part in parts:
        lines.append(
            {
                "part": part,
                "documents": documents[part],
                "tokens": tokens[part],
                "trained": trained[part],
                "epochs": trained[part] / max(1, tokens[part]),
                "planned_share": planned[part],
                "trained_share": trained[part] / max(1, sum(trained.values())),
                "tokens_share": tokens[part] / max(1, sum(tokens.values())),
                "documents_share": documents[part] / max(1, sum(documents.values())),
            }
        )
    kinds = [("planned_share", "plain"), ("trained_share", "series1"), ("tokens_share", "series2")]
    kinds += [("documents_share", "series3")]
    if not any(trained.values()):
        del kinds[1]
    rows = [Row(line["part"], [Bar(line[k], percent(line[k]), style) for k, style in kinds]) for line in lines]
    high = max(line[kind] for line in lines for kind, _ in kinds)
    return {
        "figure": bar_chart("Share of each part", rows, "share of the whole", high),
        "legend": [(style, kind) for kind, style in kinds],
        "lines": lines,
    }


def tokenizer(run: Run) -> dict[str, Any] | None:
    """Characters per token by language."""
    if run.manifest("shards") is None:
        return None
    shards = json.loads((run.folder / "shards" / "shards.json").read_text(encoding="utf-8"))
    rates = sorted(shards["characters_per_token"].items(), key=lambda item: -item[1])
    rows = [Row(language, [Bar(rate, f"{rate:.2f}", "series1")]) for language, rate in rates]
    high = max(rate for _, rate in rates)
    return {"figure": bar_chart("Characters per token, by language", rows, "characters per token", high)}


# -- training ----------------------------------------------------------------------------------------------------------


def training(run: Run) -> list[dict[str, Any]]:
    """Curves and speed of each training stage that has a log, whether or not it is finished."""
    found = []
    for stage, title in {"pretrain": "Pretraining", "sft": "SFT", "dpo": "DPO"}.items():
        if log := read_log(run.folder / "log" / f"{stage}.jsonl"):
            found.append({"stage": stage, "title": title, "whole": run.manifest(stage) is not None})
            found[-1] |= curves(log, stage, title, getattr(run.recipe, stage))
            found[-1] |= {"sources": by_source(log, title), "time": spent(run, stage)}
    return found


def spent(run: Run, stage: str) -> list[tuple[str, float]]:
    """What the time of a training went to, and its share; the useful part first."""
    seconds = read_clock(run.folder / "log", stage) or {}
    total = sum(seconds.values())
    return [(CAUSES[cause], value / total) for cause, value in seconds.items() if value] if total else []


def read_log(path: Path) -> dict[str, np.ndarray]:
    """The columns of a log; a last line that is still being written is left out."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines], float) for name in names}


def by_source(log: dict[str, np.ndarray], title: str) -> dict[str, Any] | None:
    """The loss of each source: the curves of those that are there most often, and all first and last values."""
    names = [name for name in log if name.startswith("loss/")]
    lines = []
    for name in sorted(names, key=lambda name: -np.isfinite(log[name]).sum()):
        there = np.isfinite(log[name])
        steps, values = log["step"][there], log[name][there]
        window = max(1, len(values) // 40)
        label = name.removeprefix("loss/")
        lines.append((label, steps, smooth(values, window), values[:window].mean(), values[-window:].mean()))
    if not lines:
        return None
    styles = ["series1", "series2", "series3", "series4", "plain"]
    chosen = [(line, thin(line[2]), style) for line, style in zip(lines, styles)]
    drawn = [Curve(steps[places], mean[places], style, label) for (label, steps, mean, _, _), places, style in chosen]
    figure = line_chart(f"{title}: loss by source", drawn, "step", "loss by source, nats per token")
    return {"figure": figure, "lines": [(label, first, last) for label, _, _, first, last in lines]}


def curves(log: dict[str, np.ndarray], stage: str, title: str, knobs: Any) -> dict[str, Any]:
    style, window = STYLES[stage], max(1, len(log["step"]) // 40)
    warm = {name: values[min(1, len(values) - 1) :] for name, values in log.items()}  # the first step compiles

    def draw(name: str, label: str, log: dict[str, np.ndarray] = log, mean: bool = True, **options: Any) -> Markup:
        places = thin(log[name])
        steps, values = log["step"][places], log[name][places]
        lines = [Curve(steps, values, style)]
        if mean:
            lines = [Curve(steps, values, f"{style} raw"), Curve(steps, smooth(log[name], window)[places], style)]
        return line_chart(f"{title}: {label}", lines, "step", label, **options)

    losses = log["loss"]
    unit = f"loss (DPO + {knobs.nll:g} × NLL)" if stage == "dpo" else "loss, nats per token"
    return {
        "steps": int(log["step"][-1]),
        "batch_tokens": knobs.batch_tokens,
        "first_loss": float(losses[:window].mean()),
        "last_loss": float(losses[-window:].mean()),
        "figures": [
            draw("loss", unit, log_scale=bool(losses.min() > 0 and losses.max() > 4 * losses.min())),
            draw("learning_rate", "learning rate", mean=False),
            draw("gradient_norm", "gradient norm", level=(knobs.clip_norm, "clipped above")),
            draw("tokens_per_second", "tokens per second", warm),
        ],
        "tokens_per_second": spread(warm["tokens_per_second"]),
        "mfu": spread(warm["mfu"]),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Median, and the values that a tenth of the steps lie below and above."""
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"low": float(low), "median": float(median), "high": float(high)}


# -- evaluation --------------------------------------------------------------------------------------------------------


def held_out(metrics: Metrics) -> dict[str, Any] | None:
    """Bits per byte of held-out text: the models beside xz and the bigram model."""
    names = {"xz": "xz -9", "bigram": "bigram model"} | {m: f"our model, {label}" for m, label in MODELS.items()}
    found = {m: metrics[key] for m in names if (key := f"eval.bits_per_byte.{m}") in metrics}
    if not found:
        return None
    rows = []
    for name, each in found.items():
        item = Dot(each["value"], f"{each['value']:.3f}", STYLES.get(name, "plain"), each["low"], each["high"])
        rows.append(Row(names[name], [item]))
    ends = [end for each in found.values() for end in (each["low"] or each["value"], each["high"] or each["value"])]
    margin = (max(ends) - min(ends)) * 0.05 or 0.1
    title = "Held-out bits per byte"
    chart = dot_chart(title, rows, "bits per byte (lower is better)", min(ends) - margin, max(ends) + margin)
    return {"figure": chart, "lines": [(names[name], each) for name, each in found.items()]}


def scores(metrics: Metrics) -> dict[str, Any] | None:
    """Every task's score after each stage, and the paired change that DPO made."""
    of_model = {key.rpartition(".")[0] for key, each in metrics.items() if key.endswith(".sft")}
    tasks = [task for task in [*TASKS, *sorted(of_model - TASKS.keys())] if task in of_model]
    tasks = [task for task in tasks if metrics[f"{task}.sft"]["unit"] == "share"]
    if not tasks:
        return None
    rows, lines, levels = [], [], {}
    for task in tasks:
        found = {m: metrics[key] for m in MODELS if (key := f"{task}.{m}") in metrics}
        dots = [Dot(f["value"], percent(f["value"]), STYLES[m], f["low"], f["high"]) for m, f in found.items()]
        title = TASKS.get(task, task)
        rows.append(Row(title + (" (dashed: chance)" if task in CHANCE else ""), dots))
        if task in CHANCE:
            levels[rows[-1].label] = CHANCE[task]
        lines.append({"task": task, "title": title, "scores": found, "change": metrics.get(f"{task}.change")})
    chart = dot_chart("Scores after each stage", rows, "share of right answers", 0.0, 1.0, levels)
    models = [m for m in MODELS if any(m in line["scores"] for line in lines)]
    legend = [(STYLES[m], MODELS[m]) for m in models]
    return {"figure": chart, "lines": lines, "legend": legend, "models": models}


def samples(run: Run, each: int = 2) -> list[dict[str, Any]] | None:
    """By task and model, the first few right and the first few wrong replies."""
    if run.manifest("evals") is None:
        return None
    chosen: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with (run.folder / "evals" / "samples.jsonl").open(encoding="utf-8") as lines:
        for sample in map(json.loads, lines):
            model = chosen.setdefault(sample["task"], {}).setdefault(sample["model"], [])
            if sum(other["right"] == sample["right"] for other in model) < each:
                model.append(sample)
    return [
        {
            "task": task,
            "title": TASKS.get(task, task),
            "models": [
                {"name": MODELS[m], "style": STYLES[m], "samples": sorted(found, key=lambda s: not s["right"])}
                for m, found in models.items()
            ],
        }
        for task, models in sorted(chosen.items(), key=lambda item: [*TASKS, item[0]].index(item[0]))
    ]


# -- numbers in words --------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    value = round(100 * share, 1)
    return f"{value:+.1f}".replace("-", "−") if value else "0.0"


def rounded(value: float) -> str:
    """1,234,567 is 1.23 million."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"
