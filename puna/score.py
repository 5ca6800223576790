"""Intervals: every score stands with its 95% interval and the number of cases behind it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from puna.run import figure

Z = 1.959964


def proportion(right: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Share of right answers with Wilson's interval.

    The paper's +-1.96 sqrt(S(1-S)/N) (section 5.1.1) has no width at 0 and 1, where small models live; Wilson's
    agrees with it elsewhere.
    """
    n = len(right)
    share = float(np.mean(right))
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return figure(round(share, 4), "share", round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4), n)


def change(before: Sequence[bool] | np.ndarray, after: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """Difference of two models on the same cases, with the paired interval (normal approximation)."""
    difference = np.asarray(after, float) - np.asarray(before, float)
    n = len(difference)
    # one case each way is added, so that models which never differ do not get an interval of no width
    half = Z * math.sqrt((float((difference**2).sum()) + 2) / n - (float(difference.sum()) / n) ** 2) / math.sqrt(n)
    mean = float(difference.mean())
    return figure(round(mean, 4), "share", round(mean - half, 4), round(mean + half, 4), n)


def ratio(numerators: np.ndarray, denominators: np.ndarray, unit: str, seed: int) -> dict[str, Any]:
    """Sum over sum with a bootstrap interval over the cases (documents)."""
    n = len(numerators)
    picks = np.random.default_rng(seed).integers(n, size=(1000, n))
    values = numerators[picks].sum(1) / denominators[picks].sum(1)
    low, high = np.quantile(values, [0.025, 0.975])
    value = numerators.sum() / denominators.sum()
    return figure(round(float(value), 4), unit, round(float(low), 4), round(float(high), 4), n)
