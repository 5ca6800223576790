"""The long-context section: which needles a model finds before the extension and after each of its stages."""

import json
from typing import Any

import numpy as np
from markupsafe import Markup

from puna.report.figures import heat_map
from puna.run import Run


def long_context(run: Run) -> dict[str, Any] | None:
    """A map for each examination of needles.json, and a line of figures; None where the recipe asks for none or
    it is not made yet."""
    if not run.recipe.extend.lengths or run.manifest("extend") is None:
        return None
    report = json.loads((run.folder / "extend" / "needles.json").read_text(encoding="utf-8"))
    first, lengths = report["examinations"][0], list(report["examinations"][0]["found"])
    maps = []
    for each in report["examinations"]:
        name = _name(each["name"])
        shares = {int(length): sum(c) / (len(c) * report["haystacks"]) for length, c in each["found"].items()}
        figure = _map(each["found"], lengths, report["haystacks"], name)
        maps.append({"name": name, "figure": figure, "shares": shares, "loss": each["loss"]})
        maps[-1]["change"] = each["loss"] / first["loss"] - 1
    lengths = [int(length) for length in lengths]
    return {"haystacks": report["haystacks"], "short": report["seq_len"], "lengths": lengths, "maps": maps}


def _name(examination: str) -> str:
    """In words, where an examination stands: `before`, LENGTH-ATTEMPT or `anneal`."""
    if examination in ("before", "anneal"):
        return {"before": "before the extension", "anneal": "after the anneal"}[examination]
    length, _, attempt = examination.partition("-")
    return f"after {int(length):,} tokens" + (f", attempt {attempt}" if attempt != "1" else "")


def _map(found: dict[str, list[int]], lengths: list[str], haystacks: int, name: str) -> Markup:
    depths = len(found[lengths[0]])
    shares = np.array([found.get(length, [np.nan] * depths) for length in lengths], float).T / haystacks
    return heat_map(
        f"Needles found {name}",
        [f"{int(length) / 1024:.3g}K" for length in lengths],
        [f"{depth:.0%}" for depth in np.linspace(0, 1, depths)],
        shares,
        "context in tokens",
        f"{name}: per cent found, by depth",
    )
