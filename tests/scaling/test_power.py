"""The robust solver against known laws and against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from puna.scaling.power import PowerLaw, fit_power_law, huber, minimise, objective, refit_power_law

N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7)))


@settings(max_examples=15, deadline=None)
@given(
    irreducible=st.floats(0.5, 3),
    shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    exponents=st.tuples(st.floats(0.15, 0.8), st.floats(0.15, 0.8)),
)
def test_finds_a_law_again(irreducible, shares, exponents):
    # each term is a known share of E in the middle of the grid, so that the data can tell the terms apart
    coefficients = [irreducible * s * x**e for s, e, x in zip(shares, exponents, (3e8, 3e10))]
    law = PowerLaw(np.array([np.log(irreducible), *np.log(coefficients), *exponents]))
    found = fit_power_law([N, D], law(N, D))
    assert objective(found, [N, D], law(N, D)) < 1e-12
    np.testing.assert_allclose(found.exponents, exponents, rtol=1e-3)
    np.testing.assert_allclose(found.irreducible, irreducible, rtol=1e-3)


def test_one_term():
    compute = np.geomspace(1e15, 1e21, 7)
    found = fit_power_law([compute], 2 + 30 / compute**0.1)
    np.testing.assert_allclose([found.irreducible, *found.coefficients, *found.exponents], [2, 30, 0.1], rtol=1e-4)


def noisy() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    loss = (1.7 + 400 / N**0.34 + 1200 / D**0.37) * np.exp(0.01 * rng.standard_normal(N.size))
    loss[4] *= 1.5  # an outlier
    return np.stack([N, D]), loss


def test_no_optimizer_of_scipy_finds_a_lower_objective():
    xs, loss = noisy()
    ours = objective(fit_power_law(xs, loss), xs, loss)
    logs = np.log(xs)

    def sum_of_huber(theta):
        parts = np.stack([np.full(len(loss), theta[0]), *(theta[1:3, None] - theta[3:, None] * logs)])
        return 1e6 * huber(np.logaddexp.reduce(parts) - np.log(loss)).sum()

    for start in ([0.5, 6, 7, 0.34, 0.37], [0, 5, 5, 0.3, 0.3], [1, 10, 10, 0.5, 0.5]):
        theirs = minimize(sum_of_huber, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-10}).fun
        assert ours <= theirs / 1e6 * (1 + 1e-6)


def test_an_outlier_hardly_moves_the_fit():
    xs, loss = noisy()
    clean = np.delete(loss, 4)
    without = fit_power_law(np.delete(xs, 4, axis=1), clean)
    np.testing.assert_allclose(fit_power_law(xs, loss).exponents, without.exponents, atol=0.02)


def test_weights_mean_repeated_rows():
    xs, loss = noisy()
    law = fit_power_law(xs, loss)
    weights = np.random.default_rng(0).multinomial(len(loss), np.full(len(loss), 1 / len(loss)), size=3)
    refits = refit_power_law(law, xs, loss, weights.astype(float))
    for row, theta in zip(weights, refits.theta):
        rows = np.repeat(np.arange(len(loss)), row)
        again = fit_power_law(xs[:, rows], loss[rows])
        assert objective(PowerLaw(theta), xs[:, rows], loss[rows]) == pytest.approx(
            objective(again, xs[:, rows], loss[rows]), rel=1e-5
        )


def test_fits_in_a_batch_do_not_touch_each_other():
    xs, loss = noisy()
    logs, target = np.log(xs) - np.log(xs).mean(axis=1, keepdims=True), np.log(loss)
    starts = np.array([[0.5, -1, -1, 0.3, 0.3], [0.2, -2, -1, 0.5, 0.2], [0.6, -1, -3, 0.2, 0.6]])
    weights = np.ones((1, len(loss)))
    together, _ = minimise(starts, logs, target, weights)
    for start, theta in zip(starts, together):
        np.testing.assert_allclose(minimise(start[None], logs, target, weights)[0][0], theta, rtol=1e-9)


def test_evaluation_shapes():
    batch = PowerLaw(np.array([[0.5, 6, 7, 0.3, 0.3], [0.6, 6, 7, 0.3, 0.3]]))
    assert batch(1e9, 1e10).shape == (2,)
    assert batch(np.array([1e8, 1e9, 1e10]), 1e10).shape == (2, 3)
    assert PowerLaw(batch.theta[0])(1e9, 1e10).shape == ()
