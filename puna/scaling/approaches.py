"""The three approaches of Hoffmann et al. (arXiv 2203.15556, section 3) to the compute-optimal frontier.

1. envelope: the best loss seen at each compute; 2. IsoFLOP: a parabola of loss in log tokens for each budget, whose
minimum is optimal (the paper's, section 3.2.1); 3. parametric: L = E + A/N^alpha + B/D^beta. Each ends in a Frontier,
a power law of optimal tokens in compute, and can be refitted on weighted samples, many at a time.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from puna.errors import PunaError
from puna.scaling.points import Points
from puna.scaling.power import Array, PowerLaw, compute_helps, fit_power_law, refit_power_law

BUDGET_GAP = 0.08
"""Neighbours closer than this power of ten, 20%, share a budget (ours; digitised figures scatter by 5%)."""
BUDGET_SPAN = 0.3
"""A budget whose runs differ by more than this power of ten, a factor of 2, is none (ours)."""
NEAR = 0.1
"""A parabola describes a budget's curve near its minimum: runs up to 10% above the lowest loss take part (ours)."""
RUNS_PER_BUDGET = 3
"""A parabola has three coefficients."""


@dataclass(frozen=True)
class Frontier:
    """Optimal tokens = coefficient * C^exponent and params = C / (k * tokens), k = 6 FLOPs a parameter and token.

    In the paper's section 3.2.1 the symbol N*(C) is this number of TOKENS. The fields may be arrays (S,) of samples.
    """

    coefficient: Array
    exponent: Array
    flops_per_param_token: float = 6.0

    @classmethod
    def through(
        cls, flops: ArrayLike, tokens: ArrayLike, k: float = 6.0, weights: ArrayLike | None = None
    ) -> "Frontier":
        """Least squares of log tokens on log FLOPs; tokens and weights (n,) or (S, n). NaN tokens are left out."""
        x, y = np.broadcast_arrays(np.log(np.asarray(flops, float)), np.log(np.asarray(tokens, float)))
        w = np.isfinite(y).astype(float)
        x, y = np.where(w > 0, x, 0.0), np.where(w > 0, y, 0.0)
        total = w.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_x, mean_y = (w * x).sum(-1) / total, (w * y).sum(-1) / total
            dx = x - mean_x[..., None]
            spread = (w * dx**2).sum(-1)
            slope = np.where(spread > 1e-12, (w * dx * (y - mean_y[..., None])).sum(-1) / spread, np.nan)
            return cls(np.exp(mean_y - slope * mean_x), slope, k)

    def sample(self, number: int) -> "Frontier":
        """One of a Frontier of samples."""
        return Frontier(self.coefficient[number], self.exponent[number], self.flops_per_param_token)

    @property
    def params_exponent(self) -> Array:
        return 1 - self.exponent

    @property
    def params_coefficient(self) -> Array:
        return 1 / (self.flops_per_param_token * self.coefficient)

    def tokens(self, flops: ArrayLike) -> Array:
        """Optimal tokens: flops () or (n,) gives (), (n,), (S,) or (S, n)."""
        return self._power(self.coefficient, self.exponent, flops)

    def params(self, flops: ArrayLike) -> Array:
        """Optimal parameters, shaped as tokens."""
        return self._power(self.params_coefficient, self.params_exponent, flops)

    @staticmethod
    def _power(coefficient: Array, exponent: Array, flops: ArrayLike) -> Array:
        flops = np.asarray(flops, float)
        coefficient, exponent = (np.asarray(v, float) for v in (coefficient, exponent))
        if flops.ndim and coefficient.ndim:
            coefficient, exponent = coefficient[:, None], exponent[:, None]
        # a degenerate sample may have no finite coefficient; intervals leave it out
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.exp(np.log(coefficient) + exponent * np.log(flops))


# ---- budgets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budgets:
    """Runs grouped by compute: (B,) FLOPs, ascending, and (n,) the group of each run."""

    flops: Array
    group: Array
    shared: bool
    """True where the runs of a group share one budget (IsoFLOP); else a group is half a power of ten."""

    def __len__(self) -> int:
        return len(self.flops)


def budgets(points: Points) -> Budgets:
    """The column `budget`; or runs of nearly equal FLOPs; or, where runs share no budgets, half powers of ten."""
    if points.budget is not None:
        flops, group = np.unique(points.budget, return_inverse=True)
        return Budgets(flops, group, len(flops) <= len(points) / 2)
    logs = np.log10(points.flops)
    order = np.argsort(logs, kind="stable")
    group = np.empty(len(points), np.int64)
    group[order] = np.concatenate([[0], np.cumsum(np.diff(logs[order]) > BUDGET_GAP)])
    spans = [np.ptp(logs[group == number]) for number in range(group.max() + 1)]
    shared = max(spans) <= BUDGET_SPAN and len(spans) <= len(points) / 2
    if not shared:
        _, group = np.unique(np.floor(2 * logs), return_inverse=True)
    flops = np.array([10 ** logs[group == number].mean() for number in range(group.max() + 1)])
    return Budgets(flops, group, shared)


# ---- approach 2: IsoFLOP --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parabola:
    """loss = curvature * (log tokens - log best)^2 + lowest, for one budget; log is natural."""

    flops: float
    tokens: float
    loss: float
    curvature: float
    runs: int
    span: tuple[float, float]
    """Tokens of the runs that took part."""
    problem: str | None
    """Why this budget stands aside (no minimum, or one outside the tokens tried), or None."""

    def __call__(self, tokens: ArrayLike) -> Array:
        return self.curvature * np.log(np.asarray(tokens, float) / self.tokens) ** 2 + self.loss


def near_minima(points: Points, shared: Budgets, near: float) -> Array:
    """Mask (n,) of the runs whose loss is at most `near` (a share) above the lowest of their budget."""
    lowest = np.array([points.loss[shared.group == number].min() for number in range(len(shared))])
    return points.loss <= (1 + near) * lowest[shared.group]


def fit_parabolas(points: Points, near: float = NEAR) -> list[Parabola]:
    """One for each shared budget with at least three runs of different tokens, in the order of budgets."""
    shared = budgets(points)
    if not shared.shared:
        return []
    close = near_minima(points, shared, near)
    parabolas = []
    for number, flops in enumerate(shared.flops):
        here = points.keep((shared.group == number) & close)
        if len(np.unique(here.tokens)) < RUNS_PER_BUDGET:
            continue
        tokens, loss, curvature = (v[0] for v in _minima(here, np.ones((1, len(here)))))
        span = float(here.tokens.min()), float(here.tokens.max())
        problem = None
        if not curvature > 0:
            problem = "its losses bend down, so there is no minimum; are the losses right?"
        elif not span[0] <= tokens <= span[1]:
            side, size = ("more", "smaller") if tokens > span[1] else ("fewer", "larger")
            problem = (
                f"its minimum, {tokens:.3g} tokens, lies outside the tokens tried "
                f"({span[0]:.3g} to {span[1]:.3g}); add {size} models trained on {side} tokens"
            )
        parabolas.append(Parabola(float(flops), float(tokens), float(loss), float(curvature), len(here), span, problem))
    return parabolas


def isoflop(points: Points, weights: Array | None = None, near: float = NEAR) -> Frontier:
    """Approach 2 on the points, or a Frontier of (S,) on weighted samples (S, n); `near` as in near_minima."""
    shared = budgets(points)
    if not shared.shared:
        raise PunaError("the runs share no budgets; train several sizes at equal FLOPs, or name a column of budgets")
    good = {parabola.flops for parabola in fit_parabolas(points, near) if parabola.problem is None}
    if len(good) < 2:
        raise PunaError(
            f"IsoFLOP needs two budgets with a minimum of their own, this table has {len(good)}; add budgets"
        )
    sampled = np.ones((1, len(points))) if weights is None else weights
    close = near_minima(points, shared, near)
    flops, best = [], []
    for number, centre in enumerate(shared.flops):
        if float(centre) in good:
            mine = (shared.group == number) & close
            flops.append(centre)
            best.append(_minima(points.keep(mine), sampled[:, mine])[0])
    frontier = Frontier.through(np.array(flops), np.stack(best, axis=1), points.flops_per_param_token)
    return frontier if weights is not None else frontier.sample(0)


def _minima(points: Points, weights: Array) -> tuple[Array, Array, Array]:
    """Weighted parabolas in log tokens (S,): best tokens, lowest loss, curvature.

    Of samples (S > 1) the tokens are NaN by the rule that sets a whole budget aside: too few different runs to bend,
    bent down, or the minimum outside the tokens of the sample.
    """
    x = np.log(points.tokens)
    middle, half = (x.max() + x.min()) / 2, (x.max() - x.min()) / 2
    x = (x - middle) / half
    design = np.stack([np.ones_like(x), x, x**2], axis=1)
    normal = np.einsum("sn,np,nq->spq", weights, design, design)
    right = np.einsum("sn,np,n->sp", weights, design, points.loss)
    weak = np.linalg.cond(normal) > 1e10
    normal[weak] = np.eye(3)
    c0, c1, c2 = np.linalg.solve(normal, right[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -c1 / (2 * c2)
        tokens = np.exp(middle + half * np.clip(at, -50, 50))
        if len(weights) > 1:
            lowest, highest = (np.where(weights > 0, x, edge) for edge in (np.inf, -np.inf))
            outside = (at < lowest.min(axis=1)) | (at > highest.max(axis=1))
            tokens[weak | (c2 <= 0) | outside] = np.nan
        return tokens, c0 - c1**2 / (4 * c2), c2 / half**2


# ---- approach 1: envelope -------------------------------------------------------------------------------------------


def move_together(points: Points) -> bool:
    """Whether parameters and tokens lie on one line, so that no fit can tell them apart (as optimal pairs do)."""
    logs = np.log(np.stack([points.params, points.tokens]))
    # the smaller axis of the cloud of runs: a standard deviation below 25% (ours)
    return bool(np.sqrt(np.linalg.eigvalsh(np.cov(logs))[0]) < 0.25)


def envelope(points: Points, weights: Array | None = None) -> Frontier:
    """Approach 1 on the points, or a Frontier of (S,) on weighted samples (S, n): the best run at each compute.

    With training curves (several points of a named run) the best interpolated loss at each of 200 computes; else the
    best run of each budget; else every run that beats all cheaper ones. The line goes through the winners' parameters.
    """
    flops, params = envelope_points(points, np.ones((1, len(points))) if weights is None else weights)
    k = points.flops_per_param_token
    frontier = Frontier.through(flops, flops / (k * params), k)
    if weights is not None:
        return frontier
    if np.isnan(frontier.exponent[0]):
        raise PunaError("the envelope is a single point: more compute must bring lower losses; add budgets")
    return frontier.sample(0)


def envelope_points(points: Points, weights: Array) -> tuple[Array, Array]:
    """FLOPs and parameters of the best runs, (S, m) each for weights (S, n), NaN where there is none."""
    if points.run is not None and len(set(points.run)) < len(points):
        return _best_of_curves(points, weights)
    shared = budgets(points)
    loss = np.where(weights > 0, points.loss, np.inf)
    if shared.shared:
        return _best_of_budgets(points, loss, shared.group)
    order = np.argsort(points.flops, kind="stable")
    loss = loss[:, order]
    before = np.minimum.accumulate(np.pad(loss, ((0, 0), (1, 0)), constant_values=np.inf), axis=1)[:, :-1]
    wins = loss < before
    return np.where(wins, points.flops[order], np.nan), np.where(wins, points.params[order], np.nan)


def _best_of_budgets(points: Points, loss: Array, group: Array) -> tuple[Array, Array]:
    flops, params = [], []
    for number in range(group.max() + 1):
        mine = np.flatnonzero(group == number)
        best = mine[loss[:, mine].argmin(axis=1)]
        there = np.isfinite(loss[:, mine].min(axis=1))
        flops.append(np.where(there, points.flops[best], np.nan))
        params.append(np.where(there, points.params[best], np.nan))
    return np.stack(flops, axis=1), np.stack(params, axis=1)


def _best_of_curves(points: Points, weights: Array) -> tuple[Array, Array]:
    names = np.array(points.run)
    curves = [np.flatnonzero(names == name) for name in dict.fromkeys(points.run or ())]
    curves = [mine[np.argsort(points.flops[mine], kind="stable")] for mine in curves]
    grid = np.linspace(np.log(points.flops.min()), np.log(points.flops.max()), 200)
    table = np.stack(
        [np.interp(grid, np.log(points.flops[c]), points.loss[c], left=np.inf, right=np.inf) for c in curves]
    )
    params = np.array([points.params[c[0]] for c in curves])
    winners = np.empty((len(weights), len(grid)))
    for s, row in enumerate(weights):
        losses = np.where((row[[c[0] for c in curves]] > 0)[:, None], table, np.inf)
        # where only one curve is there, it has won nothing
        contested = np.isfinite(losses).sum(axis=0) > 1
        winners[s] = np.where(contested, params[losses.argmin(axis=0)], np.nan)
    return np.where(np.isnan(winners), np.nan, np.exp(grid)), winners


# ---- approach 3: parametric -----------------------------------------------------------------------------------------


def parametric(points: Points) -> PowerLaw:
    """L = E + A/N^alpha + B/D^beta on all points; exponents are (alpha, beta)."""
    if len(points) < 6:
        raise PunaError(f"the parametric fit has five unknowns, this table {len(points)} runs; add runs")
    if not compute_helps(points.flops, points.loss):
        raise PunaError("more compute brings no lower loss; is the column an accuracy, or a log-likelihood?")
    return fit_power_law(np.stack([points.params, points.tokens]), points.loss)


def reparametric(law: PowerLaw, points: Points, weights: Array) -> PowerLaw:
    """The law refitted on weighted samples (S, n)."""
    return refit_power_law(law, np.stack([points.params, points.tokens]), points.loss, weights)


def parametric_frontier(law: PowerLaw, k: float = 6.0) -> Frontier:
    """Where k N D = C costs least loss: tokens = (C/k)^(alpha/(alpha+beta)) / G (Hoffmann et al., eq. 4)."""
    alpha, beta = np.moveaxis(law.exponents, -1, 0)
    log_a, log_b = np.moveaxis(np.log(law.coefficients), -1, 0)
    exponent = alpha / (alpha + beta)
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    with np.errstate(over="ignore"):
        return Frontier(np.exp(-log_g - exponent * np.log(k)), exponent, k)
