"""Speed of the parametric fit (approach 3) beside the published notebook's optimiser, `chinchilla` and `vpnls`.

python benchmarks/scaling.py chinchilla.csv --drop-highest 5 [--rounds 3]

All in one process, on one thread, in turns; CPU seconds. What takes minutes is done in part and scaled up, and says so.
Peers that are not installed are left out.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import minimize

from puna.scaling.approaches import parametric, reparametric
from puna.scaling.points import Points, read_points
from puna.scaling.power import PowerLaw, huber, objective
from puna.scaling.published import parametric_law
from puna.scaling.samples import resample_runs

BOOTSTRAPS, PART = 1000, 25
STARTS = list(
    product(
        np.arange(0, 30, 5),
        np.arange(0, 30, 5),
        np.arange(-1, 1.5, 0.5),
        np.arange(0, 2.5, 0.5),
        np.arange(0, 2.5, 0.5),
    )
)
"""The grid of Hoffmann et al. (appendix D.3) and of its replication (arXiv 2404.10102): a, b, e, alpha, beta."""
TRIED = STARTS[:: len(STARTS) // 20]


def sum_of_huber(theta: np.ndarray, logs: np.ndarray, target: np.ndarray) -> float:
    """The notebook's objective; theta is a, b, e, alpha, beta."""
    a, b, e, alpha, beta = theta
    return float(huber(np.logaddexp(np.logaddexp(a - alpha * logs[0], b - beta * logs[1]), e) - target).sum())


def gradient(theta: np.ndarray, logs: np.ndarray, target: np.ndarray) -> np.ndarray:
    """By hand: the notebook's is by autograd, which costs more."""
    a, b, e, alpha, beta = theta
    parts = np.stack([a - alpha * logs[0], b - beta * logs[1], np.full(len(target), e)])
    total = np.logaddexp.reduce(parts)
    share = np.exp(parts - total) * np.clip(total - target, -1e-3, 1e-3)
    sums = share.sum(axis=1)
    return np.array([*sums, -(share[0] * logs[0]).sum(), -(share[1] * logs[1]).sum()])


def as_law(theta: np.ndarray) -> PowerLaw:
    a, b, e, alpha, beta = theta
    return PowerLaw(np.array([e, a, b, alpha, beta]))


class Race:
    """The contestants, on one table. Each method returns a law, or none, and the share of the work that it did."""

    def __init__(self, points: Points) -> None:
        self.points, self.xs = points, np.stack([points.params, points.tokens])
        self.logs, self.target = np.log(self.xs), np.log(points.loss)
        self.weights = resample_runs(points, BOOTSTRAPS, 0)
        self.best = parametric(points)

    def puna_fit(self) -> tuple[PowerLaw | None, float]:
        return parametric(self.points), 1.0

    def puna_bootstrap(self) -> tuple[PowerLaw | None, float]:
        reparametric(self.best, self.points, self.weights)
        return None, 1.0

    def notebook_fit(self) -> tuple[PowerLaw | None, float]:
        found = [minimize(sum_of_huber, x, (self.logs, self.target), method="L-BFGS-B") for x in TRIED]
        return as_law(min(found, key=lambda result: result.fun).x), len(TRIED) / len(STARTS)

    def notebook_bootstrap(self) -> tuple[PowerLaw | None, float]:
        start = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
        for row in self.weights[:PART].astype(int):
            rows = np.repeat(np.arange(len(row)), row)
            minimize(sum_of_huber, start, (self.logs[:, rows], self.target[rows]), method="BFGS", jac=gradient)
        return None, PART / BOOTSTRAPS

    def vpnls_fit(self) -> tuple[PowerLaw | None, float]:
        return self.vpnls(0.01), 1.0

    def vpnls_fine_fit(self) -> tuple[PowerLaw | None, float]:
        return self.vpnls(0.001), 1.0

    def vpnls(self, resolution: float) -> PowerLaw:
        from vpnls.api import fit_vpnls, huber  # type: ignore[import-not-found]

        # its own advice: parameters in millions, tokens in billions; Huber of the loss, not of its logarithm
        r = fit_vpnls(self.xs[0] / 1e6, self.xs[1] / 1e9, self.points.loss, resolution=resolution, loss=huber(1e-3))
        return parametric_law(r.E, r.A * 1e6**r.alpha, r.B * 1e9**r.beta, r.alpha, r.beta)

    def chinchilla_fit(self) -> tuple[PowerLaw | None, float]:
        from chinchilla import Chinchilla  # type: ignore[import-not-found]
        from chinchilla._metrics import log_huber  # type: ignore[import-not-found]

        grid = {"e": [0.5, 1.0], "a": [5.0, 10.0], "b": [5.0, 10.0], "alpha": [0.5], "beta": [0.5]}
        with tempfile.TemporaryDirectory() as folder:
            model = Chinchilla(folder, grid, loss_fn=partial(log_huber, delta=1e-3), log_level=100)
            for params, tokens, loss in zip(*self.xs, self.points.loss):
                model.database.append(N=params, D=tokens, C=6 * params * tokens, loss=loss)
            model.fit(parallel=False)
        law = parametric_law(*(float(getattr(model, name)) for name in ("E", "A", "B", "alpha", "beta")))
        return law, 8 / len(STARTS)


CONTESTS = {
    "one fit": ("puna_fit", "notebook_fit", "chinchilla_fit", "vpnls_fit", "vpnls_fine_fit"),
    f"{BOOTSTRAPS} bootstrap samples": ("puna_bootstrap", "notebook_bootstrap"),
}


def seconds(contestant: Callable[[], tuple[PowerLaw | None, float]]) -> tuple[float, PowerLaw | None, float]:
    """CPU seconds for the whole work, the law, and the share that was done."""
    begun = time.process_time()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        law, share = contestant()
    return (time.process_time() - begun) / share, law, share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path)
    parser.add_argument("--drop-highest", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    points = read_points(arguments.points).without_highest_losses(arguments.drop_highest)
    race = Race(points)
    for contest, names in CONTESTS.items():
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                try:
                    spent, law, share = seconds(getattr(race, name))
                except ImportError as error:
                    print(f"{name} left out: {error}")
                    continue
                times[name].append(spent)
                if len(times[name]) == 1:
                    value = f", objective {objective(law, race.xs, points.loss):.7f}" if law else ""
                    print(f"{name}: {share:.2%} of the work done{value}", flush=True)
        ours = times[names[0]]
        print(f"\n{contest}")
        for name, spent in times.items():
            if spent:
                ratios = [theirs / mine for theirs, mine in zip(spent, ours)]
                span = f"{median(ratios):.3g} ({min(ratios):.3g}-{max(ratios):.3g})"
                print(f"  {name}: {median(spent):.3g} CPU seconds, {span} times puna's")


if __name__ == "__main__":
    main()
