"""What to train when compute-optimal is not what is wanted: other ratios, and models that will serve many tokens.

All follow from a law L(N, D) (approach 3, or a published one) and its frontier. Training costs k N D FLOPs (k = 6) and
serving 2 N a token (Sardana et al., "Beyond Chinchilla-Optimal", arXiv 2401.00448).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from puna.errors import PunaError
from puna.scaling.approaches import parametric_frontier
from puna.scaling.power import Array, PowerLaw

SERVING_FLOPS = 2.0
"""For each parameter and served token: a forward pass."""


@dataclass(frozen=True)
class Model:
    """A model that could be trained: its size, its tokens, what they cost and what loss they bring."""

    params: float
    tokens: float
    train_flops: float
    loss: float

    @property
    def tokens_per_param(self) -> float:
        return self.tokens / self.params


@dataclass(frozen=True)
class Serving:
    """A model made for its whole life, beside the compute-optimal one of the same loss. Costs in training FLOPs."""

    model: Model
    total: float
    compute_optimal: Model
    compute_optimal_total: float

    @property
    def saved(self) -> float:
        """Share of the total cost that the compute-optimal model would waste."""
        return 1 - self.total / self.compute_optimal_total


def at_size(law: PowerLaw, params: float, tokens: float, k: float = 6.0) -> Model:
    return Model(params, tokens, k * params * tokens, float(law(params, tokens)))


def compute_optimal(law: PowerLaw, flops: float, k: float = 6.0) -> Model:
    """The least loss for these training FLOPs."""
    frontier = parametric_frontier(law, k)
    return at_size(law, float(frontier.params(flops)), float(frontier.tokens(flops)), k)


def fixed_ratio(law: PowerLaw, flops: float, tokens_per_param: float, k: float = 6.0) -> Model:
    """The model of this many tokens a parameter that costs `flops`."""
    _positive(flops=flops, tokens_per_param=tokens_per_param)
    params = float(np.sqrt(flops / (k * tokens_per_param)))
    return at_size(law, params, tokens_per_param * params, k)


def fixed_size(law: PowerLaw, flops: float, params: float, k: float = 6.0) -> Model:
    """A model of given size trained for all of `flops`: over-trained where it is smaller than the optimum."""
    _positive(flops=flops, params=params)
    return at_size(law, params, flops / (k * params), k)


def overtrained(law: PowerLaw, model: Model, shrink: float, k: float = 6.0) -> Model | None:
    """A model `shrink` times smaller, trained until it has the loss of `model`; None where it never gets there."""
    params = model.params / shrink
    tokens = float(tokens_for_loss(law, params, model.loss))
    return at_size(law, params, tokens, k) if np.isfinite(tokens) else None


def tokens_for_loss(law: PowerLaw, params: ArrayLike, loss: float) -> Array:
    """Tokens at which models of `params` reach `loss`; NaN where they never do."""
    params = np.asarray(params, float)
    (a, b), (alpha, beta) = law.coefficients, law.exponents
    left = loss - law.irreducible - a / params**alpha
    return (b / np.where(left > 0, left, np.nan)) ** (1 / beta)


def for_serving(
    law: PowerLaw, loss: float, served_tokens: float, relative_cost: float = 1.0, k: float = 6.0
) -> Serving:
    """The cheapest model of a given loss over its life: training and then `served_tokens`, prompts included.

    `relative_cost` is the price of a served FLOP in training FLOPs (serving reaches a lower utilisation, so above 1).
    PunaError for a loss that the law never reaches.
    """
    if served_tokens < 0 or relative_cost < 0:
        raise PunaError(f"served tokens {served_tokens:g} and relative cost {relative_cost:g} must not be negative")
    best = _optimal_for_loss(law, loss, k)
    per_param = SERVING_FLOPS * relative_cost * served_tokens

    def log_total(log_params: float) -> float:
        tokens = tokens_for_loss(law, np.exp(log_params), loss)
        return float(np.log(np.exp(log_params) * (k * tokens + per_param)))

    # serving only ever asks for a smaller model; below the smallest the loss is out of reach
    smallest = (law.coefficients[0] / (loss - law.irreducible)) ** (1 / law.exponents[0])
    low, high = float(np.log(smallest)), float(np.log(best.params))
    found = minimize_scalar(
        log_total, bounds=(low + 1e-9 * (high - low), high), method="bounded", options={"xatol": 1e-10}
    )
    params = float(np.exp(found.x))
    model = at_size(law, params, float(tokens_for_loss(law, params, loss)), k)
    return Serving(model, model.train_flops + per_param * params, best, best.train_flops + per_param * best.params)


def _optimal_for_loss(law: PowerLaw, loss: float, k: float) -> Model:
    """The compute-optimal model of a given loss: at the optimum alpha A/N^alpha = beta B/D^beta."""
    if not loss > float(law.irreducible):
        raise PunaError(f"loss {loss:g} is below the irreducible {float(law.irreducible):.4g} of the law; ask for more")
    (a, _), (alpha, beta) = law.coefficients, law.exponents
    params = float(((1 + alpha / beta) * a / (loss - law.irreducible)) ** (1 / alpha))
    return at_size(law, params, float(tokens_for_loss(law, params, loss)), k)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise PunaError(f"{name} is {value:g}; give a positive number")
