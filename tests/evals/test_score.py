"""Intervals against published examples and against simulation."""

import numpy as np
import pytest

from puna.evals.score import change, proportion, ratio


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval(right: int, n: int, low: float, high: float):
    marks = np.arange(n) < right
    assert proportion(marks) == {"value": round(right / n, 4), "low": low, "high": high, "n": n, "unit": "share"}
    mirrored = proportion(~marks)
    assert (mirrored["low"], mirrored["high"]) == pytest.approx((1 - high, 1 - low))


def test_change_is_paired():
    random = np.random.default_rng(1)
    before = random.random(1000) < 0.7
    after = before.copy()
    after[:50] = True
    found = change(before, after)
    gained = int((after & ~before).sum())
    assert (found["value"], found["n"]) == (gained / 1000, 1000)
    # the same shares on other cases leave far more doubt
    unpaired = change(before, random.permutation(after))
    assert found["low"] > 0
    assert unpaired["high"] - unpaired["low"] > 3 * (found["high"] - found["low"])
    assert change(after, before)["value"] == -found["value"]


def test_change_of_models_that_never_differ_has_a_width():
    found = change([True] * 400, [True] * 400)
    assert found["value"] == 0
    assert 0.003 < found["high"] == -found["low"] < 0.01


@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.05), (0.1, 0.02)])
def test_change_covers_the_truth_in_95_of_100_trials(gain: float, loss: float):
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        drawn = random.random(500)
        before, after = drawn < 0.5 + loss, (drawn < 0.5) | (drawn > 1 - gain)
        found = change(before, after)
        covered += found["low"] <= gain - loss <= found["high"]
    assert 935 <= covered <= 975


def test_ratio_is_sum_over_sum_with_a_bootstrap_interval():
    random = np.random.default_rng(3)
    sizes = random.integers(100, 5000, 300).astype(float)
    bits = sizes * random.normal(2.0, 0.3, 300)
    found = ratio(bits, sizes, "bits/byte", seed=4)
    assert found["value"] == round(bits.sum() / sizes.sum(), 4)
    assert (found["n"], found["unit"]) == (300, "bits/byte")
    # the delta method's standard error of a ratio
    residual = bits - found["value"] * sizes
    error = np.sqrt((residual**2).sum()) / sizes.sum()
    assert found["value"] - found["low"] == pytest.approx(1.96 * error, rel=0.15)
    assert found["high"] - found["value"] == pytest.approx(1.96 * error, rel=0.15)
    assert found == ratio(bits, sizes, "bits/byte", seed=4)
