"""Published laws, to plan with where there are no runs of one's own; they hold for their data and tokenizer."""

from dataclasses import dataclass

import numpy as np

from puna.errors import PunaError
from puna.scaling.approaches import Frontier, parametric_frontier
from puna.scaling.power import PowerLaw


@dataclass(frozen=True)
class Published:
    """A frontier and, where it was published, the law of the loss behind it."""

    frontier: Frontier
    source: str
    law: PowerLaw | None = None


def parametric_law(e: float, a: float, b: float, alpha: float, beta: float) -> PowerLaw:
    """L = e + a / N^alpha + b / D^beta."""
    return PowerLaw(np.array([np.log(e), np.log(a), np.log(b), alpha, beta]))


def _tokens(coefficient: float, exponent: float, source: str) -> Published:
    return Published(Frontier(np.array(coefficient), np.array(exponent)), source)


def _law(law: PowerLaw, source: str) -> Published:
    return Published(parametric_frontier(law), source, law)


LAWS = {
    "llama3": _tokens(0.299, 0.537, "the paper, legend of figure 3: tokens = 0.299 C^0.537"),
    "llama3-text": _tokens(
        0.29,
        0.53,
        "the paper, section 3.2.1: tokens = 0.29 C^0.53, rounded: 10.5T tokens at 3.8e25 where it says 16.55T",
    ),
    "chinchilla": _law(
        parametric_law(1.69, 406.4, 410.7, 0.34, 0.28), "Hoffmann et al. (arXiv 2203.15556), equation 10, approach 3"
    ),
    "chinchilla-replication": _law(
        parametric_law(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
        "Besiroglu et al. (arXiv 2404.10102), refit of approach 3",
    ),
}


def published(name: str) -> Published:
    """A law by name; PunaError names those there are."""
    if name not in LAWS:
        raise PunaError(f"no published law {name!r}; there are {', '.join(LAWS)}")
    return LAWS[name]
