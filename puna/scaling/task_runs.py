"""Runs scored on a task: their checkpoints, as a table gives them, and the ends of the runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puna.errors import PunaError
from puna.scaling.checks import check_size
from puna.scaling.points import find_column, numeric, read_table, select
from puna.scaling.power import Array

MOVING_AVERAGE = 5
"""Checkpoints averaged against their noise (Bhagia et al., arXiv 2412.04403, section 3.3)."""
NAMES = {
    "run": ("run", "run_id", "run_name", "model", "name"),
    "params": ("params", "n", "parameters", "model_size", "n_params"),
    "tokens": ("tokens", "d", "training_tokens", "n_tokens"),
    "flops": ("flops", "c", "compute", "training_flops"),
    "loss": ("task_loss", "nll", "bpb", "loss"),
    "accuracy": ("accuracy", "acc"),
}


@dataclass(frozen=True)
class TaskRuns:
    """Checkpoints of runs on one task, (n,) each: in a run, in the order of training.

    Sizes are NaN where unknown: a model without FLOPs takes part in step 2 only, one without params or tokens in the
    linear law only. PunaError for losses and accuracies that cannot be right.
    """

    run: tuple[str, ...]
    params: Array
    tokens: Array
    flops: Array
    loss: Array
    accuracy: Array

    def __post_init__(self) -> None:
        for name, column in (("loss", self.loss), ("accuracy", self.accuracy)):
            bad = np.flatnonzero(~np.isfinite(column) | (column < 0))
            if bad.size:
                rows = ", ".join(f"row {i + 1}: {column[i]:g}" for i in bad[:5])
                hint = "a log-likelihood is minus a loss" if name == "loss" else "leave out what was not measured"
                raise PunaError(f"{name} must be a number from 0 up, but {rows}; {hint}")
        if self.accuracy.max() > 1:
            raise PunaError(f"accuracy up to {self.accuracy.max():g} looks like percent; give fractions: divide by 100")

    def runs(self) -> Iterator[tuple[str, Array]]:
        """Each run's name and positions."""
        names = np.array(self.run)
        for name in dict.fromkeys(self.run):
            yield name, np.flatnonzero(names == name)

    def keep(self, names: Sequence[str]) -> "TaskRuns":
        """Only these runs."""
        at = np.flatnonzero(np.isin(self.run, list(names)))
        columns = (self.params, self.tokens, self.flops, self.loss, self.accuracy)
        return TaskRuns(tuple(self.run[i] for i in at), *(column[at] for column in columns))


@dataclass(frozen=True)
class Ends:
    """The end of every run: (r,) each; loss and accuracy averaged over its last checkpoints."""

    run: tuple[str, ...]
    params: Array
    tokens: Array
    flops: Array
    loss: Array
    accuracy: Array

    def known(self, kind: str) -> Array:
        """Which runs have the sizes that this law needs."""
        return np.isfinite(self.params * self.tokens) if kind == "power" else np.isfinite(self.flops)

    def sizes(self, chosen: Array) -> Array:
        """params, tokens, FLOPs of these runs, (3, r)."""
        return np.stack([self.params, self.tokens, self.flops])[:, chosen]


def ends_of(runs: TaskRuns, average: int = MOVING_AVERAGE) -> Ends:
    """The last point of every run, its loss and accuracy averaged over the last `average` checkpoints."""
    rows = [(name, at) for name, at in runs.runs()]
    last = np.array([at[-1] for _, at in rows])
    loss = np.array([runs.loss[at[-average:]].mean() for _, at in rows])
    accuracy = np.array([runs.accuracy[at[-average:]].mean() for _, at in rows])
    names = tuple(name for name, _ in rows)
    return Ends(names, runs.params[last], runs.tokens[last], runs.flops[last], loss, accuracy)


def read_task_runs(
    path: Path, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> TaskRuns:
    """Task runs from a table with one row for each checkpoint; each run's rows are put in the order of tokens or FLOPs.

    `columns` names those of run, params, tokens, flops, loss and accuracy where their names are unusual. Without a
    column for runs every row is one. An empty cell is an unknown size. PunaError for what is missing or wrong.
    """
    asked = dict(columns or {})
    unknown = asked.keys() - NAMES.keys()
    if unknown:
        raise PunaError(f"no such quantity: {', '.join(sorted(unknown))}; name columns of {', '.join(NAMES)}")
    table = select(read_table(path), where or {}, path)
    found = {name: find_column(table, name, asked.get(name), NAMES) for name in NAMES}
    for name in ("loss", "accuracy"):
        if found[name] is None:
            raise PunaError(
                f"{path}: no column for {name}; name it as {name}=COLUMN. The table has: {', '.join(table[0])}"
            )
    nothing = np.full(len(table), np.nan)
    values = {n: np.array(numeric(table, c)) if (c := found[n]) else nothing for n in NAMES if n != "run"}
    values["flops"] = np.where(np.isnan(values["flops"]), 6 * values["params"] * values["tokens"], values["flops"])
    for name in ("params", "tokens", "flops"):
        given = values[name][np.isfinite(values[name])]
        if given.size and (given <= 0).any():
            raise PunaError(
                f"{found[name]} holds {given.min():g}; a size is positive, and an unknown one an empty cell"
            )
        if given.size:
            check_size(name, found[name] or name, given)
    run = [str(row.get(found["run"])) if found["run"] else f"row {i}" for i, row in enumerate(table, 1)]
    order = np.lexsort((values["flops"], np.unique(run, return_inverse=True)[1]))
    return TaskRuns(tuple(run[i] for i in order), *(values[name][order] for name in list(NAMES)[1:]))
