"""Additive power laws, loss = E + sum_j A_j / x_j^gamma_j, fitted robustly and many at a time.

One term (x = compute) is the loss along the frontier; two terms (x = parameters, tokens) are "approach 3" of Hoffmann
et al. (arXiv 2203.15556, section 3.3). The objective is theirs: the SUM (a mean makes optimisers stop early) of
Huber(1e-3) of the error in log loss. Near its minimum it is almost an L1 fit, in which only a handful of points carry
curvature; quasi-Newton methods crawl there. Here Newton's method is damped by the curvature of the quadratic that
majorises Huber's loss, which is positive definite and scaled like the problem, so damping works from far to near. All
fits (starts, or bootstrap samples) go through the same arrays at once.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

Array = NDArray[Any]
"""Of float64 unless said."""

HUBER_DELTA = 1e-3
"""Where Huber's loss turns linear, in log loss (Hoffmann et al., section 3.3)."""
STEPS = 300
REFINED_STARTS, FIRST_STEPS, FINISHED_STARTS = 24, 30, 4
"""Most starts show within a few steps where they lead; only the best are followed to the end (ours)."""
GRID = {1: np.geomspace(0.02, 2.0, 24), 2: np.geomspace(0.03, 1.5, 10)}
"""Exponents to start from, by number of terms; wide of anything published (ours)."""


@dataclass(frozen=True)
class PowerLaw:
    """loss = E + sum_j A_j / x_j^gamma_j; `theta` is (..., 1 + 2T): log E, log A_1..T, gamma_1..T."""

    theta: Array

    @property
    def terms(self) -> int:
        return (self.theta.shape[-1] - 1) // 2

    @property
    def irreducible(self) -> Array:
        """E (...): the loss that no size reaches below."""
        return np.exp(self.theta[..., 0])

    @property
    def coefficients(self) -> Array:
        """A_1..T (..., T)."""
        return np.exp(self.theta[..., 1 : 1 + self.terms])

    @property
    def exponents(self) -> Array:
        """gamma (..., T)."""
        return self.theta[..., 1 + self.terms :]

    def __call__(self, *xs: ArrayLike) -> Array:
        """Loss at x_1..T, each (n,) or a number: (..., n) or (...)."""
        logs = np.log(np.stack(np.broadcast_arrays(*(np.asarray(x, float) for x in xs))))
        flat = _log_loss(np.atleast_2d(self.theta), logs.reshape(self.terms, -1))[0]
        return np.exp(flat).reshape(self.theta.shape[:-1] + logs.shape[1:])


def huber(error: Array) -> Array:
    size = np.abs(error)
    return np.where(size <= HUBER_DELTA, 0.5 * error**2, HUBER_DELTA * (size - 0.5 * HUBER_DELTA))


def objective(law: PowerLaw, xs: ArrayLike, loss: ArrayLike) -> float:
    """Sum of Huber(1e-3) of the error in log loss; xs (T, n), loss (n,)."""
    return float(huber(np.log(law(*np.asarray(xs))) - np.log(loss)).sum())


def compute_helps(flops: Array, loss: Array) -> bool:
    """Whether the lowest loss (n,) lies in the upper half of the compute."""
    upper = flops > np.median(flops)
    return bool(not upper.any() or loss[upper].min() < loss[~upper].min())


def fit_power_law(xs: ArrayLike, loss: ArrayLike) -> PowerLaw:
    """The best of many starts. xs (T, n) with T of 1 or 2, loss (n,), all positive.

    Variable projection over a grid of exponents (given them, E and A are a non-negative linear fit) makes the starts.
    """
    logs, shift, target = _prepare(xs, loss)
    starts = _starting_points(logs, target)
    weights = np.ones((1, target.size))
    order = np.argsort(_evaluate(starts, logs, target, weights)[0], kind="stable")
    theta, value = minimise(starts[order[:REFINED_STARTS]], logs, target, weights, FIRST_STEPS)
    order = np.argsort(value, kind="stable")
    theta, value = minimise(theta[order[:FINISHED_STARTS]], logs, target, weights)
    return PowerLaw(_uncentre(theta[np.argmin(value)], shift))


def refit_power_law(law: PowerLaw, xs: ArrayLike, loss: ArrayLike, weights: Array) -> PowerLaw:
    """One law for each row of weights (S, n), started from `law`: bootstrap samples, or subsets as zeros and ones."""
    logs, shift, target = _prepare(xs, loss)
    start = law.theta.copy()
    start[1 : 1 + len(shift)] -= start[1 + len(shift) :] * shift
    theta, _ = minimise(np.tile(start, (len(weights), 1)), logs, target, weights)
    return PowerLaw(_uncentre(theta, shift))


def minimise(theta: Array, logs: Array, target: Array, weights: Array, steps: int = STEPS) -> tuple[Array, Array]:
    """Damped Newton from theta (S, P) on logs (T, n), target (n,), weights (S or 1, n): minima (S, P), values (S,).

    A fit leaves the batch when its next step promises less than a 1e-11 of its value.
    """
    theta, weights = theta.copy(), np.broadcast_to(weights, (len(theta), target.size))
    terms = len(logs)
    value = _evaluate(theta, logs, target, weights)[0]
    damping = np.ones(len(theta))
    live = np.arange(len(theta))
    for _ in range(steps):
        if not live.size:
            break
        step, promise = _newton_step(theta[live], logs, target, weights[live], damping[live])
        trial = theta[live] + step
        new = _evaluate(trial, logs, target, weights[live])[0]
        # exponents stay positive: more parameters or tokens never hurt in these laws
        better = (new < value[live]) & (trial[:, 1 + terms :] > 0).all(axis=1)
        theta[live[better]] = trial[better]
        value[live[better]] = new[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5, damping[live] * 4), 1e-10, 1e8)
        live = live[(promise > 1e-11 * value[live]) & (damping[live] < 1e8)]
    return theta, value


def _newton_step(theta: Array, logs: Array, target: Array, weights: Array, damping: Array) -> tuple[Array, Array]:
    """Step (S, P) and the decrease that the gradient promises for it (S,)."""
    terms = len(logs)
    _, error, share = _evaluate(theta, logs, target, weights)
    jacobian = np.concatenate([share, -share[:, 1:] * logs], axis=1)
    slope = weights * np.clip(error, -HUBER_DELTA, HUBER_DELTA)
    gradient = np.einsum("spn,sn->sp", jacobian, slope)
    size = np.abs(error)
    majorant = HUBER_DELTA / np.maximum(size, HUBER_DELTA)
    # J'(w + damping * majorant - slope)J is the Hessian of the sum of Huber, less the curvature of the single terms
    curvature = weights * ((size <= HUBER_DELTA) + damping[:, None] * majorant) - slope
    hessian = (jacobian * curvature[:, None]) @ jacobian.transpose(0, 2, 1)
    weighted = share * slope[:, None]
    hessian[:, 0, 0] += weighted[:, 0].sum(axis=1)
    for j in range(terms):
        a, g = 1 + j, 1 + terms + j
        hessian[:, a, a] += weighted[:, a].sum(axis=1)
        cross = (weighted[:, a] * logs[j]).sum(axis=1)
        hessian[:, a, g] -= cross
        hessian[:, g, a] -= cross
        hessian[:, g, g] += (weighted[:, a] * logs[j] ** 2).sum(axis=1)
    values, vectors = np.linalg.eigh(hessian)
    # negative curvature is turned round, so that every step goes down
    values = np.maximum(np.abs(values), 1e-12 * np.abs(values).max(axis=1, keepdims=True) + 1e-300)
    along = np.einsum("sqp,sq->sp", vectors, gradient) / values
    step = -np.einsum("sqp,sp->sq", vectors, along)
    return step, -(gradient * step).sum(axis=1)


def _evaluate(theta: Array, logs: Array, target: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Objective (S,), error in log loss (S, n), share of each term in the loss (S, 1 + T, n)."""
    log_loss, share = _log_loss(theta, logs)
    error = log_loss - target
    return (weights * huber(error)).sum(axis=1), error, share


def _log_loss(theta: Array, logs: Array) -> tuple[Array, Array]:
    """log loss (S, n) by log-sum-exp over the terms, and each term's share (S, 1 + T, n)."""
    terms = len(logs)
    parts = np.empty((len(theta), 1 + terms, logs.shape[1]))
    parts[:, 0] = theta[:, :1]
    parts[:, 1:] = theta[:, 1 : 1 + terms, None] - theta[:, 1 + terms :, None] * logs
    top = parts.max(axis=1, keepdims=True)
    share = np.exp(parts - top)
    total = share.sum(axis=1, keepdims=True)
    share /= total
    return (top + np.log(total))[:, 0], share


def _prepare(xs: ArrayLike, loss: ArrayLike) -> tuple[Array, Array, Array]:
    """Centred logs (T, n), their means (T,), log loss (n,). Centring unties A from its exponent."""
    logs = np.log(np.atleast_2d(np.asarray(xs, float)))
    shift = logs.mean(axis=1)
    return logs - shift[:, None], shift, np.log(np.asarray(loss, float))


def _uncentre(theta: Array, shift: Array) -> Array:
    terms = len(shift)
    theta = theta.copy()
    theta[..., 1 : 1 + terms] += theta[..., 1 + terms :] * shift
    return theta


def _starting_points(logs: Array, target: Array) -> Array:
    starts = []
    relative = np.exp(-target)
    for exponents in product(GRID[len(logs)], repeat=len(logs)):
        columns = np.exp(-np.array(exponents)[:, None] * logs)
        design = np.vstack([np.ones_like(target), columns]) * relative
        linear, _ = nnls(design.T, np.ones_like(target))
        floor = 1e-4 / design.mean(axis=1)
        starts.append([*np.log(np.maximum(linear, floor)), *exponents])
    return np.array(starts)
