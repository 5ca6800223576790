"""A sigmoid from loss to accuracy, fitted by damped least squares within bounds, many samples at a time."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from puna.errors import PunaError
from puna.scaling.power import Array

STEPS = 100
LOWER = np.array([-1.0, -np.inf, 0.0, 0.0])
UPPER = np.array([0.0, np.inf, np.inf, 1.0])
"""Of (height, middle, steepness, ceiling): accuracy lies between 0 and 1 and falls with loss."""


@dataclass(frozen=True)
class Sigmoid:
    """accuracy = ceiling + height / (1 + exp(-steepness (loss - middle))), height in [-1, 0].

    `theta` is (..., 4): height, middle, steepness, ceiling.
    """

    theta: Array

    def __call__(self, loss: ArrayLike) -> Array:
        """loss () or (n,) gives () or (n,); of samples theta (S, 4): loss (n,) or (S, n) gives (S, n)."""
        loss = np.asarray(loss, float)
        coefficients = np.moveaxis(self.theta, -1, 0)
        height, middle, steepness, ceiling = coefficients[..., None] if loss.ndim else coefficients
        return ceiling + height * _logistic(steepness * (loss - middle))


def fit_sigmoid(loss: Array, accuracy: Array) -> Sigmoid:
    """Least squares through (n,) points and the ideal one (loss 0, accuracy 1), the best of several starts."""
    different = len(np.unique(loss))
    if different < 4:
        raise PunaError(f"a sigmoid has four coefficients, here are {different} losses; add checkpoints or models")
    low, high = float(loss.min()), float(loss.max())
    width = max(high - low, 1e-3 * high)
    starts = [
        [-(1.0 - accuracy.min()), middle, steepness / width, 1.0]
        for middle in (low, (low + high) / 2, high)
        for steepness in (1.0, 3.0, 10.0)
    ]
    theta, error = _minimise(np.array(starts), *_with_ideal(loss, accuracy, np.ones((1, len(loss)))))
    return Sigmoid(theta[np.argmin(error)])


def refit_sigmoid(sigmoid: Sigmoid, loss: Array, accuracy: Array, weights: Array) -> Sigmoid:
    """One for each row of weights (S, n), started from `sigmoid`."""
    start = np.tile(sigmoid.theta, (len(weights), 1))
    return Sigmoid(_minimise(start, *_with_ideal(loss, accuracy, weights))[0])


def _with_ideal(loss: Array, accuracy: Array, weights: Array) -> tuple[Array, Array, Array]:
    return np.append(loss, 0.0), np.append(accuracy, 1.0), np.pad(weights, ((0, 0), (0, 1)), constant_values=1.0)


def _minimise(theta: Array, x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Levenberg-Marquardt with clipping to the bounds; what pushes against its bound stands still. (S, 4), (S,)."""
    theta = np.clip(theta, LOWER, UPPER)
    weights = np.broadcast_to(weights, (len(theta), len(x)))
    error, damping = _squares(theta, x, y, weights), np.full(len(theta), 1e-2)
    live = np.arange(len(theta))
    for _ in range(STEPS):
        if not live.size:
            break
        gradient, hessian = _derivatives(theta[live], x, y, weights[live])
        stuck = ((theta[live] <= LOWER) & (gradient > 0)) | ((theta[live] >= UPPER) & (gradient < 0))
        gradient = np.where(stuck, 0.0, gradient)
        diagonal = np.einsum("spp->sp", hessian)
        diagonal += damping[live, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
        free = ~stuck
        hessian = np.where(free[:, :, None] & free[:, None, :], hessian, np.eye(4))
        step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
        trial = np.clip(theta[live] + step, LOWER, UPPER)
        new = _squares(trial, x, y, weights[live])
        better = new < error[live]
        gain = (error[live] - new) / np.maximum(error[live], 1e-300)
        theta[live[better]], error[live[better]] = trial[better], new[better]
        damping[live] = np.clip(np.where(better, damping[live] / 5, damping[live] * 5), 1e-12, 1e12)
        live = live[np.where(better, gain > 1e-12, damping[live] < 1e8)]
    return theta, error


def _squares(theta: Array, x: Array, y: Array, weights: Array) -> Array:
    return (weights * (Sigmoid(theta)(x) - y) ** 2).sum(axis=1)


def _derivatives(theta: Array, x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    height, middle, steepness, _ = theta.T[..., None]
    part = _logistic(steepness * (x - middle))
    slope = height * part * (1 - part)
    jacobian = np.stack([part, -slope * steepness, slope * (x - middle), np.ones_like(part)], axis=1)
    missed = weights * (Sigmoid(theta)(x) - y)
    return np.einsum("spn,sn->sp", jacobian, missed), (jacobian * weights[:, None]) @ jacobian.transpose(0, 2, 1)


def _logistic(z: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * z))
