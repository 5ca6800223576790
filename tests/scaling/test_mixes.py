"""Mix laws and the annealing probe on known truths."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from puna.errors import PunaError
from puna.scaling.mixes import anneal_probe, fit_mixes

TRUTH = {"web": (1.9, 60.0), "code-heavy": (1.8, 75.0), "balanced": (1.7, 62.0)}
"""E and A of each mix; exponent 0.1 in FLOPs."""


def runs(noise: float, seed: int = 0):
    draws = np.random.default_rng(seed)
    rows = [(name, c, e + a / c**0.1) for name, (e, a) in TRUTH.items() for c in (1e16, 1e17, 1e18, 1e19)]
    mix, flops, loss = zip(*rows)
    return mix, flops, (np.array(loss) * np.exp(noise * draws.standard_normal(len(loss)))).tolist()


def true_loss(name: str, flops: float) -> float:
    return TRUTH[name][0] + TRUTH[name][1] / flops**0.1


def test_ranks_mixes_and_predicts_the_large_run():
    laws = fit_mixes(*runs(0), target_flops=1e21, bootstraps=50)
    assert [forecast.mix for forecast in laws.ranking] == ["balanced", "web", "code-heavy"]
    for forecast in laws.ranking:
        assert forecast.loss.value == pytest.approx(true_loss(forecast.mix, 1e21), rel=2e-3)
    assert laws.ranking[0].best > 0.95


def test_intervals_hold_the_large_run_about_as_often_as_they_say():
    inside = 0
    for seed in range(12):
        laws = fit_mixes(*runs(0.003, seed), target_flops=1e20, bootstraps=200, level=0.9)
        inside += sum(f.loss.low <= true_loss(f.mix, 1e20) <= f.loss.high for f in laws.ranking)
    assert 28 <= inside <= 36


def test_order_of_rows_does_not_matter():
    mix, flops, loss = runs(0)
    backwards = fit_mixes(mix[::-1], flops[::-1], loss[::-1], 1e21, bootstraps=20)
    forwards = fit_mixes(mix, flops, loss, 1e21, bootstraps=20)
    for one, two in zip(backwards.ranking, forwards.ranking):
        assert one.mix == two.mix
        assert one.loss.value == pytest.approx(two.loss.value, rel=1e-9)


def test_undecided_mixes_are_told():
    mix, flops, loss = runs(0)
    same = ["a" if name == "web" else "b" for name in mix if name != "code-heavy"]
    keep = [i for i, name in enumerate(mix) if name != "code-heavy"]
    noisy = [2 + 60 / flops[i] ** 0.1 + 0.02 * (-1) ** i for i in keep]
    laws = fit_mixes(same, [flops[i] for i in keep], noisy, 1e21, bootstraps=200)
    assert any("do not settle" in warning for warning in laws.warnings)
    assert len(loss) == 12


def test_too_few_computes_name_the_mix():
    with pytest.raises(PunaError, match=r"mix 'a' has runs at 2 computes"):
        fit_mixes(["a"] * 4, [1e17, 1e17, 1e18, 1e18], [3, 3, 2.9, 2.9], 1e20)


def test_probe_is_welchs_test():
    candidate, default = [0.41, 0.43, 0.42], [0.38, 0.39, 0.37, 0.4]
    probe = anneal_probe(candidate, default)
    reference = ttest_ind(candidate, default, equal_var=False).confidence_interval(0.95)
    assert probe.delta.value == pytest.approx(0.035)
    assert (probe.delta.low, probe.delta.high) == pytest.approx((reference.low, reference.high))
    assert probe.helps is True
    assert anneal_probe(candidate, default, lower_is_better=True).helps is False
    assert anneal_probe(default, [x + 1e-3 for x in default]).helps is None


def test_probe_needs_scatter():
    with pytest.raises(PunaError, match="two seeds"):
        anneal_probe([0.4], [0.3, 0.31])
