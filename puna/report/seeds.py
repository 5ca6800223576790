"""The run beside those that differ from it in nothing but the seed: how much of a figure is chance."""

from typing import Any

import numpy as np
from scipy import stats

from puna.errors import PunaError
from puna.run import Run

SHOWN = {
    "eval.bits_per_byte": "Held-out text, bits per byte",
    "tools.single.on": "Arithmetic with the calculator",
    "tools.single.off": "Arithmetic without a tool",
    "tools.single.on.change": "DPO's change of it",
    "rounds.first.start": "Right first messages before the rounds",
    "rounds.first.end": "Right first messages after them",
    "rounds.first.over_start": "The gain",
    "rounds.first.over_control": "Over SFT of equal compute",
    "rounds.solved.single.end": "Single calls after the rounds",
    "rounds.solved.nested.end": "Nested calls after the rounds",
    "rounds.solved.parallel.end": "Parallel calls after the rounds",
    "rounds.solved.single.on": "Single calls, told every call",
    "rounds.solved.nested.on": "Nested calls, told every call",
    "rounds.solved.parallel.on": "Parallel calls, told every call",
    "rounds.solved.single.off": "Single, told every answer, no tool",
    "rounds.solved.nested.off": "Nested, told every answer, no tool",
    "rounds.solved.parallel.off": "Parallel, told every answer, no tool",
    "rounds.irrelevance.end": "F1 of knowing when not to call, after the rounds",
    "reward.accuracy": "Held-out pairs that the reward model ranks right",
    "reward.gain": "Its best answer over a random one",
}


def seeds(run: Run) -> dict[str, Any] | None:
    """Figures by seed, with their mean and its 95% interval by Student's t; None where there is one seed alone."""
    runs = sorted([run, *siblings(run)], key=lambda each: each.recipe.seed)
    if len(runs) < 2:
        return None
    metrics = [each.metrics() for each in runs]
    rows = []
    for name, title in SHOWN.items():
        found = [each[name] for each in metrics if name in each]
        if len(found) < 2:
            continue
        values = np.array([figure["value"] for figure in found])
        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        low, high = float(values.mean()) - half, float(values.mean()) + half
        is_change = name.rpartition(".")[2] in ("change", "gain", "over_start", "over_control")
        unit = "points" if is_change else "percent" if found[0]["unit"] == "share" else "three"
        if not is_change and found[0]["unit"] in ("share", "F1"):
            low, high = max(low, 0.0), min(high, 1.0)
        mean = {"value": float(values.mean()), "low": low, "high": high}
        figures, n = [each.get(name) for each in metrics], found[0].get("n")
        rows.append({"title": title, "figures": figures, "mean": mean, "unit": unit, "n": n})
    return {"seeds": [each.recipe.seed for each in runs], "rows": rows} if rows else None


def siblings(run: Run) -> list[Run]:
    """Runs beside this one, of other seeds, whose recipes have the same knobs but for the name."""
    found = []
    for path in sorted(run.folder.resolve().parent.glob("*/recipe.toml")):
        if path.parent == run.folder.resolve():
            continue
        try:
            other = Run.open(path.parent)
        except PunaError:  # of another version, or not a run
            continue
        if other.recipe.seed != run.recipe.seed and _knobs(other) == _knobs(run):
            found.append(other)
    return found


def _knobs(run: Run) -> dict[str, Any]:
    return run.recipe.model_dump(exclude={"name", "seed"})
