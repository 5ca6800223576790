"""Units of a table of runs: what cannot be right is refused, what looks odd is told."""

from collections.abc import Mapping

import numpy as np

from puna.errors import PunaError
from puna.scaling.power import Array

LARGEST_LOSS = 15.0
"""Nats a token. Guessing evenly over a vocabulary of 256,000 costs 12.5 (ours)."""
MIXED_GAP = 5.0
"""An empty stretch of so many powers of ten within a column means two units (ours)."""
WORDS = {"params": ("param", "size", "weights"), "tokens": ("token", "data"), "flops": ("flop", "compute")}


def check_units(columns: Mapping[str, Array], names: Mapping[str, str]) -> list[str]:
    """Warnings; raises PunaError for what cannot be right. columns: positive numbers; names: theirs in the table."""
    told = {name: names.get(name, name) for name in columns}
    _check_names(told)
    for name in ("params", "tokens", "flops"):
        if name in columns:
            check_size(name, told[name], columns[name])
            _check_mixed(told[name], columns[name])
    warnings = []
    if "params" in columns and "tokens" in columns:
        warnings += _check_order(columns, told)
    if {"params", "tokens", "flops"} <= columns.keys():
        warnings += _check_product(columns, told)
    if np.median(columns["loss"]) > LARGEST_LOSS:
        warnings.append(
            f"{told['loss']}: median {np.median(columns['loss']):.3g} is high for nats a token; "
            "if it is a perplexity, give its logarithm"
        )
    return warnings


def _check_names(told: Mapping[str, str]) -> None:
    """A column whose name speaks of another quantity has been put in the wrong place."""
    for name in WORDS.keys() & told.keys():
        column = told[name].lower()
        for other, words in WORDS.items():
            wrong = other != name and any(word in column for word in words)
            if wrong and not any(word in column for word in WORDS[name]):
                raise PunaError(
                    f"column {told[name]!r} is given as {name}, but its name says {other}: tokens are not parameters. "
                    f"Swap the columns, or rename it if it does hold {name}"
                )


def check_size(name: str, column: str, values: Array) -> None:
    """PunaError for positive values (n,) that cannot be `name` (params, tokens or flops) in plain units."""
    usual = {"params": (1e3, 1e14), "tokens": (1e4, 1e17), "flops": (1e9, 1e30)}[name]
    middle, low, high = (float(v) for v in (np.median(values), values.min(), values.max()))
    said = f"{column}: from {low:.4g} to {high:.4g} cannot be {name}"
    if high <= 32 and low >= 3 and not np.allclose(values, np.round(values * 2) / 2):
        raise PunaError(f"{said}; these look like logarithms to base 10: give 10**{column}")
    if middle < usual[0]:
        raise PunaError(f"{said}; these look like millions, billions or the like: give plain units, 7e9 for 7 billion")
    if middle > usual[1]:
        raise PunaError(f"{said}; the column holds something else, or its unit is off by powers of ten")


def _check_mixed(column: str, values: Array) -> None:
    ordered = np.sort(np.log10(values))
    gaps = np.diff(ordered)
    if gaps.size and gaps.max() > MIXED_GAP:
        at = int(gaps.argmax())
        few = min(at + 1, len(values) - at - 1)
        below, above = 10 ** ordered[at], 10 ** ordered[at + 1]
        raise PunaError(
            f"{column} mixes units: nothing lies between {below:.4g} and {above:.4g} ({few} values on one side); "
            "give every row in plain units"
        )


def _check_order(columns: Mapping[str, Array], told: Mapping[str, str]) -> list[str]:
    ratio = columns["tokens"] / columns["params"]
    if np.median(ratio) < 1:
        return [
            f"half of the runs have fewer tokens than parameters ({np.median(ratio):.2g} for each): "
            f"are {told['params']!r} and {told['tokens']!r} swapped?"
        ]
    return []


def _check_product(columns: Mapping[str, Array], told: Mapping[str, str]) -> list[str]:
    ratio = columns["flops"] / (6 * columns["params"] * columns["tokens"])
    middle = float(np.median(ratio))
    flops, params, tokens = told["flops"], told["params"], told["tokens"]
    if not 0.25 < middle < 4:
        power = round(np.log10(middle))
        guess = "PF-days (8.64e19 FLOPs)" if abs(np.log10(middle) + 19.94) < 0.3 else f"a factor of 1e{power}"
        raise PunaError(
            f"{flops} is {middle:.3g} times 6 x {params} x {tokens} (C = 6ND): one of them is off by {guess}, or the "
            "columns are not what they are named; give plain units, or leave one of the three out"
        )
    odd = np.flatnonzero(np.abs(np.log(ratio / middle)) > np.log(3))
    warnings = []
    if odd.size:
        shown = ", ".join(str(row + 1) for row in odd[:8])
        warnings.append(f"{flops} does not match 6 x {params} x {tokens} in {odd.size} rows (valid rows {shown})")
    if abs(middle - 1) > 0.1:
        warnings.append(
            f"{flops} is {middle:.3g} times 6 x {params} x {tokens}; recommendations keep this ratio "
            f"({6 * middle:.3g} FLOPs for each parameter and token)"
        )
    return warnings
