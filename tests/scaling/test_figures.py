"""Figures show what was fitted."""

import numpy as np
import pytest

from puna.scaling.figures import frontier_figure, isoflop_figure, residuals_figure, save_fit_figures
from puna.scaling.fit import fit_scaling


@pytest.fixture(scope="module")
def fit(truth):
    return fit_scaling(truth.runs(noise=0.003), bootstraps=30)


def test_isoflop_figure_has_each_budgets_runs_parabola_and_minimum(fit):
    (axes,) = isoflop_figure(fit).axes
    assert len(axes.lines) == 3 * 4
    assert sum(line.get_marker() == "D" for line in axes.lines) == 4
    assert {text.get_text() for text in axes.texts} == {"1e18", "1e19", "1e20", "1e21"}


def test_frontier_figure_marks_the_target(fit):
    left, right = frontier_figure(fit, 1e24).axes
    recommended = fit.recommend(1e24)
    for axes, value in ((left, recommended.tokens.value), (right, recommended.params.value)):
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        assert [float(np.asarray(line.get_ydata())[0]) for line in stars] == [value]
        assert axes.get_xscale() == axes.get_yscale() == "log"


def test_residuals_figure_shows_every_run(fit):
    left, _ = residuals_figure(fit).axes
    assert sum(np.size(line.get_xdata()) for line in left.lines[1:]) == len(fit.points)


def test_a_table_without_budgets_has_no_isoflop_figure(truth, tmp_path):
    points = truth.runs(noise=0.003, sizes=9)
    scattered = fit_scaling(points.keep(points.row % 2 == 0), bootstraps=20, approach="parametric")
    files = save_fit_figures(scattered, tmp_path)
    assert all(path.stat().st_size > 5000 for path in files)
