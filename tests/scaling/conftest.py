"""Runs drawn from a known law."""

from dataclasses import dataclass

import numpy as np
import pytest

from puna.scaling.points import Points, make_points


@dataclass(frozen=True)
class Truth:
    """L = 1.7 + 400 / N^0.34 + 1200 / D^0.37."""

    @property
    def exponent(self) -> float:
        """Of optimal tokens in compute."""
        return 0.34 / (0.34 + 0.37)

    def loss(self, params, tokens) -> np.ndarray:
        return 1.7 + 400 / np.asarray(params) ** 0.34 + 1200 / np.asarray(tokens) ** 0.37

    def tokens(self, flops: float) -> float:
        g = (0.34 * 400 / (0.37 * 1200)) ** (1 / (0.34 + 0.37))
        return (flops / 6) ** self.exponent / g

    def runs(
        self, budgets: tuple[float, ...] = (1e18, 1e19, 1e20, 1e21), sizes: int = 7, noise: float = 0.0, seed: int = 0
    ) -> Points:
        """`sizes` models a budget, from an eighth to eight times the optimal tokens; `noise` in log loss."""
        tokens = np.concatenate([self.tokens(budget) * np.geomspace(1 / 8, 8, sizes) for budget in budgets])
        flops = np.repeat(budgets, sizes)
        params = flops / (6 * tokens)
        scatter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(tokens)))
        return make_points(params=params, tokens=tokens, flops=flops, loss=self.loss(params, tokens) * scatter)


@pytest.fixture(scope="session")
def truth() -> Truth:
    return Truth()
