"""From a budget to a model: what a fit, a saved fit or a published law recommends, and its alternatives."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.errors import PunaError
from puna.scaling.approaches import Frontier
from puna.scaling.fit import Recommendation, ScalingFit
from puna.scaling.optimum import Model, fixed_ratio, fixed_size, for_serving, overtrained
from puna.scaling.output import recommendation_dict
from puna.scaling.power import PowerLaw
from puna.scaling.published import Published, parametric_law
from puna.scaling.samples import Interval, human, plain
from puna.scaling.trust import extrapolation_warnings

TFLOPS = 400.0
"""A GPU's BF16 TFLOP/s in training: an H100's in the 405B run (the paper, section 3.3.2: 380 to 430)."""
EFFECTIVE = 0.9
"""Share of the time that trains: above 90% over 54 days (the paper, section 3.3.4)."""


@dataclass(frozen=True)
class Basis:
    """What a plan rests on."""

    source: str
    frontier: Frontier
    law: PowerLaw | None
    fit: ScalingFit | None = None
    warnings: list[str] = field(default_factory=list)


def budget_flops(gpus: float, days: float, tflops: float = TFLOPS, effective: float = EFFECTIVE) -> float:
    """Training FLOPs of GPUs that run for days at `tflops` TFLOP/s each, `effective` of the time."""
    for name, value in (("gpus", gpus), ("days", days), ("tflops", tflops), ("effective", effective)):
        if not value > 0:
            raise PunaError(f"{name} is {value:g}; give a positive number")
    if effective > 1:
        raise PunaError(f"effective is {effective:g}; it is a share of the time: 0.9 for 90%")
    return gpus * days * 86400 * tflops * 1e12 * effective


def basis_of_fit(fit: ScalingFit, source: str) -> Basis:
    law = fit.law[0] if "parametric" in fit.approaches else None
    return Basis(f"{fit.preferred} fit of {source}", fit[fit.preferred].frontier, law, fit, fit.warnings)


def basis_of_published(name: str, law: Published) -> Basis:
    warning = "a published law holds for its own data, tokenizer and training; runs of your own would say more"
    return Basis(f"{name}: {law.source}", law.frontier, law.law, None, [warning])


def basis_of_file(path: Path) -> Basis:
    """A fit.json, as `puna scaling fit --out` or the scaling stage writes it. It holds no samples: no intervals."""
    if not path.is_file():
        raise PunaError(f"no fit at {path}; `puna scaling fit POINTS --out FOLDER` writes FOLDER/fit.json")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        chosen = saved["approaches"][saved["preferred"]]
        coefficient, exponent = (chosen[f"tokens_{part}"]["value"] for part in ("coefficient", "exponent"))
        frontier = Frontier(np.array(coefficient), np.array(exponent), saved["flops_per_param_token"])
        fitted = saved["approaches"].get("parametric", {}).get("law")
        parts = [fitted[part]["value"] for part in ("E", "A", "B", "alpha", "beta")] if fitted else None
        warnings = saved["warnings"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise PunaError(f"{path} is not a fit: {error!r}; `puna scaling fit POINTS --out FOLDER` writes one") from error
    law = parametric_law(*parts) if parts else None
    hint = "intervals need the runs: plan with --points instead of --fit"
    return Basis(f"{saved['preferred']} fit in {path}", frontier, law, None, [*warnings, hint])


def advise(
    basis: Basis,
    flops: float,
    tokens_per_param: float | None = None,
    params: float | None = None,
    served_tokens: float | None = None,
    relative_cost: float = 1.0,
) -> dict[str, Any]:
    """The compute-optimal model at `flops`, and alternatives where the law of the loss is known.

    `tokens_per_param` and `params` ask for a model of that ratio or size at the same budget; `served_tokens` for the
    one that reaches the optimum's loss at the least cost over its life.
    """
    if not flops > 0:
        raise PunaError(f"flops is {flops:g}; give the training budget in FLOPs, for example 3.8e25")
    k, law = basis.frontier.flops_per_param_token, basis.law
    size = float(basis.frontier.params(flops)), float(basis.frontier.tokens(flops))
    loss = float(law(*size)) if law else float("nan")
    best = Model(*size, flops, loss)
    recommended = basis.fit.recommend(flops) if basis.fit else _bare(best)
    trust = extrapolation_warnings(basis.fit, flops) if basis.fit else ()
    plan: dict[str, Any] = {
        "source": basis.source,
        "flops": flops,
        "recommended": recommendation_dict(recommended),
        "alternatives": {},
        "warnings": [*basis.warnings, *(plain(warning) for warning in trust)],
    }
    if law is None:
        if tokens_per_param or params or served_tokens:
            plan["warnings"].append(
                "this law gives no loss, so alternatives cannot be weighed; fit runs, or use another"
            )
        return plan
    plan["alternatives"] = dict(_alternatives(law, best, k, tokens_per_param, params))
    if served_tokens is not None:
        life = for_serving(law, best.loss, served_tokens, relative_cost, k)
        plan["serving"] = {
            "served_tokens": served_tokens,
            "model": vars(life.model),
            "total_flops": life.total,
            "saved": life.saved,
        }
    return plan


def _alternatives(
    law: PowerLaw, best: Model, k: float, ratio: float | None, params: float | None
) -> Iterator[tuple[str, dict[str, float]]]:
    if ratio:
        yield f"{ratio:g} tokens a parameter", vars(fixed_ratio(law, best.train_flops, ratio, k))
    if params:
        yield f"{human(params)} parameters", vars(fixed_size(law, best.train_flops, params, k))
    for shrink, name in ((2, "half"), (4, "a quarter of")):
        model = overtrained(law, best, shrink, k)
        if model:
            yield f"{name} the size, same loss", vars(model)


def _bare(model: Model) -> Recommendation:
    """A recommendation without samples, so without intervals."""
    params, tokens, loss = (Interval(x, float("nan"), float("nan")) for x in (model.params, model.tokens, model.loss))
    return Recommendation(model.train_flops, "given law", params, tokens, None if np.isnan(model.loss) else loss)
