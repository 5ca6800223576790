"""Published data sets give the published numbers (only where the development data is there)."""

import numpy as np
import pytest

from puna.scaling.approaches import envelope, isoflop
from puna.scaling.fit import ScalingFit, fit_scaling
from puna.scaling.points import Columns, Points, read_points
from puna.scaling.power import objective

PAIRS = {
    "rw|base|long|kaplan|kaplan|train": 0.834,
    "rw|base|long|kaplan|standard|val": 0.701,
    "rw|base|short|kaplan|standard|val": 0.604,
    "rw|base|short|chinchilla|standard|val": 0.571,
    "rw|tuned|short|const|standard|val": 0.497,
}
"""Porian et al. (arXiv 2406.19146): exponents of optimal parameters in five settings."""


def llama3(shared_data) -> Points:
    return read_points(shared_data("scaling/llama3_isoflop.csv"), Columns(where={"condition": "raw_loss"}))


def test_chinchilla_parametric(shared_data):
    """The replication of approach 3 (arXiv 2404.10102): its optimum, which its own optimiser stopped short of."""
    fit = fit_scaling(
        read_points(shared_data("scaling/chinchilla.csv")).without_highest_losses(5), approach="parametric"
    )
    law, samples = fit.law
    assert objective(law, [fit.points.params, fit.points.tokens], fit.points.loss) <= 0.0010183
    assert law.coefficients == pytest.approx([477.8, 2143], rel=1e-3)
    assert float(law.irreducible) == pytest.approx(1.8172, abs=1e-4)
    assert law.exponents == pytest.approx([0.3473, 0.3672], abs=1e-4)
    assert float(fit["parametric"].frontier.params_exponent) == pytest.approx(0.514, abs=5e-4)
    errors = [*samples.coefficients.std(0), samples.irreducible.std(), *samples.exponents.std(0)]
    assert errors == pytest.approx([123, 1280, 0.0255, 0.0152, 0.0205], rel=0.12)
    gopher = fit.recommend(5.76e23)
    assert gopher.params.value / 1e9 == pytest.approx(73.2, abs=0.05)
    assert gopher.tokens.value / 1e12 == pytest.approx(1.31, abs=0.005)


def test_chinchilla_hangs_on_five_runs(shared_data):
    fit = fit_scaling(read_points(shared_data("scaling/chinchilla.csv")), bootstraps=50, approach="parametric")
    assert float(fit["parametric"].frontier.params_exponent) == pytest.approx(0.565, abs=5e-4)
    assert float(fit.sensitivity["5 highest losses"].params_exponent) == pytest.approx(0.514, abs=5e-4)
    assert {outlier.row for outlier in fit.outliers} >= {1, 2, 3, 4, 5}
    assert any("hangs on few runs" in warning for warning in fit.warnings)


def test_llama3_isoflop(shared_data):
    """The paper's figures 2 and 3, section 3.2.1."""
    fit = fit_scaling(llama3(shared_data))
    frontier = fit["isoflop"].frontier
    assert fit.preferred == "isoflop"
    assert float(frontier.exponent) == pytest.approx(0.5368, abs=5e-5)
    assert float(frontier.coefficient) == pytest.approx(0.2994, abs=5e-5)
    at_text, at_flagship = fit.recommend(4.0e25), fit.recommend(3.8e25)
    assert at_text.tokens.value / 1e12 == pytest.approx(16.55, abs=0.005)
    assert at_text.params.value / 1e9 == pytest.approx(402.8, abs=0.05)
    assert at_flagship.tokens.value / 1e12 == pytest.approx(16.1, abs=0.05)
    assert at_flagship.params.value / 1e9 == pytest.approx(393, abs=0.5)
    assert np.array(at_flagship.tokens[1:]) / 1e12 == pytest.approx([9, 19], abs=0.5)
    assert np.array(at_flagship.params[1:]) / 1e9 == pytest.approx([338, 694], rel=0.04)


def test_llama3_without_the_largest_budget(shared_data):
    points = llama3(shared_data)
    without = fit_scaling(points, bootstraps=20)["isoflop"].without[1e22]
    assert float(without.exponent) == pytest.approx(0.511, abs=5e-4)
    assert float(without.tokens(3.8e25)) / 1e12 == pytest.approx(11.3, abs=0.05)
    again = isoflop(points.keep(points.flops < 9e21))
    assert float(again.exponent) == pytest.approx(float(without.exponent), abs=1e-9)


@pytest.mark.parametrize("setting", PAIRS)
def test_optimal_pairs(shared_data, setting):
    points = read_points(shared_data("scaling/porian_optimal_pairs.csv"), Columns(where={"config": setting}))
    assert float(envelope(points).params_exponent) == pytest.approx(PAIRS[setting], abs=7e-4)


def test_isoflop_curves_of_porian(shared_data):
    """From their raw runs, tuned setting: Chinchilla's half, not Kaplan's 0.73."""
    where = {"hparams": "tuned", "param_count": "standard"}
    fit: ScalingFit = fit_scaling(
        read_points(shared_data("scaling/porian_summary_df.jsonl.gz"), Columns(where=where)), bootstraps=50
    )
    assert float(fit["envelope"].frontier.params_exponent) == pytest.approx(0.5, abs=0.06)
