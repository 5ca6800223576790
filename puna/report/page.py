"""The run's page: RUN/report/index.html, one file that needs no other, from whatever the run has so far.

It holds times and the name of the machine, so it is no artifact. What puna shows of the corpus and of the models is
text by others: the template escapes it, and what a page must not hold is made visible.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from puna.errors import PunaError
from puna.recipe import Recipe
from puna.report import figures, sections
from puna.report.needles import long_context
from puna.report.rounds import rounds
from puna.report.scaling import scaling, scientific
from puna.report.seeds import seeds
from puna.run import STAGES, Run, write_text

HERE = Path(__file__).parent


def write_report(run: Run) -> Path:
    """Write the page of a run, whole or not; returns its path."""
    path = run.folder / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(run))
    return path


def render(run: Run) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": sections.percent,
        "points": sections.points,
        "rounded": sections.rounded,
        "scientific": scientific,
        "shown": shown,
        "knob": knob,
    }
    metrics = run.metrics()
    return environment.get_template("page.html.jinja").render(
        run=run,
        recipe=run.recipe,
        metrics=metrics,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        mark=figures.mark,
        machine=", ".join(dict.fromkeys(line["machine"] for line in run.timings())),
        lineage=lineage(run),
        source=source(run),
        changes=list(changes(run.recipe)),
        funnel=sections.funnel(run),
        mix=sections.mix(run),
        tokenizer=sections.tokenizer(run),
        scaling=scaling(run),
        training=sections.training(run),
        long_context=long_context(run),
        held_out=sections.held_out(metrics),
        scores=sections.scores(metrics),
        rounds=rounds(run),
        seeds=seeds(run),
        samples=sections.samples(run),
    )


def shown(text: str | None, limit: int = 600) -> str:
    """Text by others, cut, its control characters made visible: they are not allowed in a page."""
    text = text or ""
    text = text if len(text) <= limit else text[:limit].rstrip() + " …"
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)


def knob(value: Any) -> str:
    """The value of a knob; what is not set has none."""
    return "–" if value is None else f"{value:,}" if type(value) is int else str(value)


# -- what was run, and from what ---------------------------------------------------------------------------------------


def lineage(run: Run) -> list[dict[str, Any]]:
    """One line for each stage: its state, what it was made from, its digest, size, minutes and peak memory."""
    timings = {line["stage"]: line for line in run.timings()}
    try:
        states = run.states()
    except PunaError:  # the corpus's source is not on this machine
        absent = {stage.name: "optional" if stage.optional else "missing" for stage in STAGES}
        states = {name: "done" if run.manifest(name) else state for name, state in absent.items()}
    longest = max((line["minutes"] for line in timings.values()), default=0) or 1
    lines = []
    for stage in STAGES:
        if states[stage.name] == "optional":
            continue
        manifest = run.manifest(stage.name)
        timing = timings.get(stage.name)
        lines.append(
            {
                "name": stage.name,
                "state": states[stage.name],
                "needs": stage.needs,
                "digest": manifest["digest"] if manifest else "",
                "megabytes": sum(f["bytes"] for f in manifest["files"].values()) / 1e6 if manifest else None,
                "minutes": timing and timing["minutes"],
                "share": timing["minutes"] / longest if timing else 0,
                "peak_gb": timing and timing["peak_gb"],
                "versions": manifest["versions"] if manifest else {},
            }
        )
    return lines


def source(run: Run) -> dict[str, Any] | None:
    """What the corpus was made from; a package's licence is named where its terms have a machine-readable form."""
    path = run.folder / "corpus" / "source.json"
    if run.manifest("corpus") is None:
        return None
    about = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(about["source"], dict):
        about["source"] = ", ".join(f"{name}: {place}" for name, place in about["source"].items())
    for package in about.setdefault("packages", []):
        package["licence"] = licence(path.parent, package.get("licence", ""))
    return about


def licence(folder: Path, named: str) -> str:
    """The short names in a Debian copyright file; where it has none, the file to read; an identifier as it is."""
    path = folder / named
    if not named or not path.is_file():
        return named
    text = path.read_text(encoding="utf-8", errors="replace")
    names = re.findall(r"^License:[ \t]*(\S.*?)\s*$", text, re.MULTILINE) if text.startswith("Format:") else []
    return ", ".join(dict.fromkeys(names)) or f"corpus/{named}"


def changes(recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """(knob, value, default) of every knob that differs from its default."""
    values = recipe.model_dump(mode="json")
    defaults = Recipe(name=recipe.name).model_dump(mode="json")

    def walk(here: dict[str, Any], there: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key, value in here.items():
            if isinstance(value, dict) and isinstance(there.get(key), dict) and key != "mix":
                yield from walk(value, there[key], f"{prefix}{key}.")
            elif value != there.get(key):
                yield prefix + key, value, there.get(key)

    return walk(values, defaults, "")
