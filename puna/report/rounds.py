"""Post-training in rounds on the run's page: what each round learned from, measured and kept."""

import json
from typing import Any

from puna.report.figures import Dot, Row, dot_chart
from puna.run import Run

MODELS = {"start": "before the rounds", "end": "after them", "control": "SFT alone, equal compute"}
TOLD = {"on": "told every call, equal SFT tokens", "off": "told every answer, no tool, equal SFT tokens"}
TASKS = {"single": "Single calls", "nested": "Nested calls", "parallel": "Parallel calls", "none": "No call needed"}


def rounds(run: Run) -> dict[str, Any] | None:
    """The figure of the best model after each round, a line for each round, and what was measured at the end."""
    manifest = run.manifest("rounds")
    if manifest is None:
        return None
    ledger, metrics = json.loads((run.folder / "rounds" / "ledger.json").read_text()), manifest["metrics"]
    rows = []
    for entry in ledger:
        score = entry["best"]["score"]
        dot = Dot(score["value"], f"{100 * score['value']:.1f}%", "series1", score["low"], score["high"])
        rows.append(Row(f"round {entry['round']}" if entry["round"] else "before", [dot]))
    title = "Right first messages of the best model so far"
    models = [name for name in MODELS | TOLD if f"rounds.solved.{name}" in metrics]
    return {
        "figure": dot_chart(title, rows, "share right at temperature 1, validation problems", 0.0, 1.0),
        "ledger": ledger,
        "models": [(MODELS | TOLD)[name] for name in models],
        "first": [metrics[f"rounds.first.{name}"] for name in models],
        "tasks": [
            (title, [metrics[key] for name in models if (key := f"rounds.solved.{kind}.{name}") in metrics])
            for kind, title in TASKS.items()
        ],
        "irrelevance": [metrics[f"rounds.irrelevance.{name}"] for name in models if name != "off"],
        "gains": {name: metrics[key] for name in MODELS if (key := f"rounds.first.over_{name}") in metrics},
        "reward": {name.partition(".")[2]: value for name, value in metrics.items() if name.startswith("reward.")},
    }
