"""Tables of training runs: read, named, and checked for the mistakes that users make with units.

A point is one run (or one checkpoint of a run) with its parameters N, tokens D, training FLOPs C and loss. Two of N,
D and C are enough: the third follows from C = 6ND (Kaplan et al., arXiv 2001.08361, section 2.1).
"""

import csv
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from puna.errors import PunaError
from puna.scaling.checks import check_units
from puna.scaling.power import Array

FLOPS_PER_PARAM_TOKEN = 6.0
NAMES = {
    "params": ("params", "n", "parameters", "model_size", "n_params", "non_embedding_params", "params_no_embed"),
    "tokens": ("tokens", "d", "t", "training_tokens", "train_tokens", "n_tokens"),
    "flops": ("flops", "c", "compute", "training_flop", "training_flops", "train_flops", "budget"),
    "loss": ("loss", "l", "val_loss", "validation_loss", "final_loss"),
    "budget": ("budget", "flops_budget", "compute_budget"),
    "run": ("run", "run_id", "run_name"),
}
"""Column names that are recognised unasked, in any case, with spaces or dashes for underscores."""


@dataclass(frozen=True)
class Points:
    """Columns of equal length n; `row` is the number of each point's row in the table, from 1."""

    params: Array
    tokens: Array
    flops: Array
    loss: Array
    row: Array
    budget: Array | None = None
    run: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def flops_per_param_token(self) -> float:
        """6, or what the table's own FLOPs say (attention or embeddings may be counted)."""
        ratio = float(np.median(self.flops / (self.params * self.tokens)))
        return FLOPS_PER_PARAM_TOKEN if abs(ratio / FLOPS_PER_PARAM_TOKEN - 1) < 1e-3 else ratio

    def keep(self, chosen: Array) -> "Points":
        """The points at these positions or where this mask is true."""
        at = np.arange(len(self))[chosen]
        columns = {name: getattr(self, name)[at] for name in ("params", "tokens", "flops", "loss", "row")}
        budget = None if self.budget is None else self.budget[at]
        run = None if self.run is None else tuple(self.run[i] for i in at)
        return replace(self, **columns, budget=budget, run=run)

    def without_highest_losses(self, count: int) -> "Points":
        """All but the `count` highest losses, in their order."""
        if not 0 <= count < len(self):
            raise PunaError(f"cannot drop the {count} highest of {len(self)} losses; drop fewer")
        return self.keep(np.sort(np.argsort(self.loss, kind="stable")[: len(self) - count]))

    def last_of_each_run(self) -> "Points":
        """The point with the most tokens of every run; all points where no run is named."""
        if self.run is None:
            return self
        last: dict[str, int] = {}
        for i, name in enumerate(self.run):
            if name not in last or self.tokens[i] > self.tokens[last[name]]:
                last[name] = i
        return self.keep(np.array(sorted(last.values())))


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what; None means: look for a usual name."""

    params: str | None = None
    tokens: str | None = None
    flops: str | None = None
    loss: str | None = None
    budget: str | None = None
    run: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    """Keep only the rows in which these columns hold these values."""


def make_points(
    *,
    loss: Iterable[float],
    params: Iterable[float] | None = None,
    tokens: Iterable[float] | None = None,
    flops: Iterable[float] | None = None,
    budget: Iterable[float] | None = None,
    run: Iterable[str] | None = None,
    drop_invalid: bool = False,
    check: bool = True,
    names: Mapping[str, str] | None = None,
) -> Points:
    """Points from columns, two of params, tokens and flops at least.

    Raises PunaError, naming rows and the mend, for NaN, infinite, zero or negative values (`drop_invalid` leaves such
    rows out with a warning) and, unless `check` is False, for units that cannot be right.
    """
    names = dict(names or {})
    columns = {
        name: np.asarray(list(values), float)
        for name, values in {"params": params, "tokens": tokens, "flops": flops, "loss": loss, "budget": budget}.items()
        if values is not None
    }
    if len(columns.keys() & {"params", "tokens", "flops"}) < 2:
        raise PunaError("a point needs two of params, tokens and flops; the third follows from C = 6ND")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise PunaError(f"columns differ in length: {lengths}; give one value of each for every run")
    kept, warnings = _valid_rows(columns, names, drop_invalid)
    rows = np.flatnonzero(kept) + 1.0
    columns = {name: column[kept] for name, column in columns.items()}
    if not kept.any():
        raise PunaError("no row is left to fit; the table is empty or every row is invalid")
    if check:
        warnings += check_units(columns, names)
    budgets = columns.pop("budget", None)
    runs = None if run is None else tuple(name for name, good in zip(run, kept) if good)
    c = FLOPS_PER_PARAM_TOKEN
    if "params" not in columns:
        columns["params"] = columns["flops"] / (c * columns["tokens"])
    elif "tokens" not in columns:
        columns["tokens"] = columns["flops"] / (c * columns["params"])
    elif "flops" not in columns:
        columns["flops"] = c * columns["params"] * columns["tokens"]
    return Points(**columns, row=rows, budget=budgets, run=runs, warnings=tuple(warnings))


def read_points(path: Path, columns: Columns | None = None, drop_invalid: bool = False, check: bool = True) -> Points:
    """Points from a CSV, JSON or JSON Lines table (.gz too). PunaError as in make_points, or for a missing column."""
    columns = columns or Columns()
    table = select(read_table(path), columns.where, path)
    found = {name: find_column(table, name, getattr(columns, name)) for name in NAMES}
    if found["flops"] == found["budget"] and found["params"] and found["tokens"]:
        found["flops"] = None
    if found["loss"] is None:
        raise PunaError(_missing(path, "loss", table))
    if sum(found[name] is not None for name in ("params", "tokens", "flops")) < 2:
        absent = [name for name in ("params", "tokens", "flops") if found[name] is None]
        raise PunaError(_missing(path, " or ".join(absent), table))
    numbers = {name: numeric(table, column) for name, column in found.items() if column is not None and name != "run"}
    run = [str(row.get(found["run"], "")) for row in table] if found["run"] else None
    names = {name: column for name, column in found.items() if column}
    return make_points(**numbers, run=run, drop_invalid=drop_invalid, check=check, names=names)


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV (a header first), a JSON list of objects, or JSON Lines; also gzipped."""
    if not path.is_file():
        raise PunaError(f"no table at {path}; give a CSV, .json or .jsonl file with one row for each run")
    opener = gzip.open if path.suffix == ".gz" else open
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        with opener(path, "rt", encoding="utf-8", newline="") as handle:
            if kind == ".csv":
                rows: Any = list(csv.DictReader(handle))
            elif kind == ".tsv":
                rows = list(csv.DictReader(handle, delimiter="\t"))
            elif kind == ".jsonl":
                rows = [json.loads(line) for line in handle if line.strip()]
            elif kind == ".json":
                rows = json.load(handle)
            else:
                raise PunaError(f"{path}: {kind or 'no'} suffix; a table is .csv, .tsv, .json or .jsonl, plain or .gz")
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise PunaError(f"{path} is not a readable {kind} table: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise PunaError(f"{path} is not a list of objects; write one object of named columns for each run")
    if not rows:
        raise PunaError(f"{path} has no rows; one row for each run is needed")
    return explode(rows)


def explode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each element where a row holds lists (as Porian et al. publish one row for each budget)."""
    out = []
    for row in rows:
        lists = {name: value for name, value in row.items() if isinstance(value, list) and value}
        numeric_lists = {k: v for k, v in lists.items() if all(isinstance(x, int | float) for x in v)}
        lengths = {len(value) for value in numeric_lists.values()}
        if len(numeric_lists) < 2 or len(lengths) != 1:
            out.append(row)
            continue
        for i in range(lengths.pop()):
            out.append({**row, **{name: value[i] for name, value in numeric_lists.items()}})
    return out


def select(table: list[dict[str, Any]], where: Mapping[str, str], path: Path) -> list[dict[str, Any]]:
    """The rows in which every column of `where` holds its value."""
    for column, value in where.items():
        if not any(column in row for row in table):
            raise PunaError(f"{path} has no column {column!r}; it has {', '.join(map(str, table[0]))}")
        kept = [row for row in table if str(row.get(column)) == value]
        if not kept:
            values = sorted({str(row.get(column)) for row in table})
            raise PunaError(f"{path}: no row has {column}={value}; there are {', '.join(values[:12])}")
        table = kept
    return table


def find_column(
    table: Sequence[Mapping[str, Any]], name: str, asked: str | None, names: Mapping[str, tuple[str, ...]] = NAMES
) -> str | None:
    """The column asked for, or one with a usual name, or None."""
    present = list(table[0])
    if asked is not None:
        if asked not in present and cell(table[0], asked) is None:
            raise PunaError(f"no column {asked!r} for {name}; the table has {', '.join(map(str, present))}")
        return asked
    plain = {str(column).strip().lower().replace(" ", "_").replace("-", "_"): column for column in reversed(present)}
    return next((plain[usual] for usual in names[name] if usual in plain), None)


def cell(row: Mapping[str, Any], column: str) -> Any:
    """A row's value; "results.0.loss" reaches into nested JSON. None where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def numeric(table: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    """A column as numbers; an empty cell is NaN. PunaError for what is no number."""
    values = []
    for number, row in enumerate(table, 1):
        found = cell(row, column)
        try:
            values.append(float("nan") if found is None or found == "" else float(found))
        except (TypeError, ValueError):
            raise PunaError(
                f"row {number}: {column} is {str(found)[:40]!r}, not a number; write plain digits or 6e18, no unit"
            ) from None
    return values


def _missing(path: Path, what: str, table: Sequence[Mapping[str, Any]]) -> str:
    columns = ", ".join(map(str, table[0]))
    return f"{path}: no column for {what}; name it as {what.split(' ')[0]}=COLUMN. The table has: {columns}"


def _valid_rows(columns: Mapping[str, Array], names: Mapping[str, str], drop: bool) -> tuple[Array, list[str]]:
    good = np.ones(len(columns["loss"]), bool)
    problems = []
    for name, column in columns.items():
        bad = ~(np.isfinite(column) & (column > 0))
        if bad.any():
            rows = np.flatnonzero(bad) + 1
            shown = ", ".join(f"row {row}: {column[row - 1]:g}" for row in rows[:5])
            more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
            problems.append(f"{names.get(name, name)} must be a positive number, but {shown}{more}")
            good &= ~bad
    if not problems:
        return good, []
    if drop:
        return good, [f"left out {int((~good).sum())} rows: {'; '.join(problems)}"]
    hint = "a diverged run has no loss to fit, and a log-likelihood is minus a loss"
    raise PunaError(f"{'; '.join(problems)}. Mend these rows or leave them out (drop_invalid, --drop-invalid): {hint}")
