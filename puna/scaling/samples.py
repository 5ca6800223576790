"""Resampling over runs, and intervals from what it gives."""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from puna.scaling.points import Points
from puna.scaling.power import Array


class Interval(NamedTuple):
    """An estimate with the bounds of its interval."""

    value: float
    low: float
    high: float


def plain(text: str) -> str:
    """1e22 for Python's 1e+22."""
    return text.replace("e+", "e")


def human(value: float) -> str:
    """Parameters or tokens as they are spoken of: 16.1T, 393B, 7.5M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Draws keyed by (seed, what for): adding one use does not change another."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def resample_runs(points: Points, count: int, seed: int) -> Array:
    """Weights (count, n): how often each point is in a bootstrap sample. The points of a named run stay together."""
    if points.run is None:
        unit = np.arange(len(points))
    else:
        _, unit = np.unique(np.array(points.run), return_inverse=True)
    units = int(unit.max()) + 1
    draws = generator(seed, "runs").multinomial(units, np.full(units, 1 / units), size=count)
    return draws[:, unit].astype(float)


def interval(value: ArrayLike, samples: ArrayLike, level: float) -> Interval:
    """The percentile interval of the samples; NaN samples are left out, and no samples give NaN bounds."""
    samples = np.asarray(samples, float)
    samples = samples[np.isfinite(samples)]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail]) if samples.size else (np.nan, np.nan)
    return Interval(float(np.asarray(value)), float(low), float(high))
