"""A fit as plain data: the object that `--json` prints, CSV tables, and a file to plan from later."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from puna.scaling.fit import Approach, Recommendation, ScalingFit
from puna.scaling.forecast import Forecast, Target, backtest
from puna.scaling.power import Array, objective
from puna.scaling.samples import Interval, interval


def to_dict(fit: ScalingFit, flops: list[float]) -> dict[str, Any]:
    """Everything that `--json` prints: exponents, coefficients, intervals, recommendations, diagnostics, warnings."""
    return {
        "runs": len(fit.points),
        "level": fit.level,
        "preferred": fit.preferred,
        "flops_per_param_token": fit.points.flops_per_param_token,
        "approaches": {name: _approach_dict(fit, approach) for name, approach in fit.approaches.items()},
        "recommendations": [
            recommendation_dict(fit.recommend(budget, name)) for budget in flops for name in fit.approaches
        ],
        "leave_one_budget_out": {
            name: [
                {
                    "left_out": left_out,
                    "tokens_exponent": number(frontier.exponent),
                    "recommended": [
                        {"flops": c, "params": number(frontier.params(c)), "tokens": number(frontier.tokens(c))}
                        for c in flops
                    ],
                }
                for left_out, frontier in approach.without.items()
            ]
            for name, approach in fit.approaches.items()
        },
        "budgets": [
            {
                "flops": p.flops,
                "runs": p.runs,
                "best_tokens": number(p.tokens),
                "best_loss": p.loss,
                "problem": p.problem,
            }
            for p in fit.parabolas
        ],
        "outliers": [vars(outlier) for outlier in fit.outliers],
        "sensitivity": [
            {"left_out": name, "tokens_exponent": number(f.exponent), "params_exponent": number(f.params_exponent)}
            for name, f in fit.sensitivity.items()
        ],
        "backtest": vars(fit.backtest) if fit.backtest else None,
        "warnings": fit.warnings,
    }


def _approach_dict(fit: ScalingFit, approach: Approach) -> dict[str, Any]:
    frontier, samples = approach.frontier, approach.samples

    def span(value: ArrayLike, drawn: Array) -> dict[str, float | None]:
        return interval_dict(interval(value, drawn, fit.level), float(np.nanstd(drawn)))

    out: dict[str, Any] = {
        "tokens_exponent": span(frontier.exponent, samples.exponent),
        "tokens_coefficient": span(frontier.coefficient, samples.coefficient),
        "params_exponent": span(frontier.params_exponent, samples.params_exponent),
        "params_coefficient": span(frontier.params_coefficient, samples.params_coefficient),
    }
    if approach.name == "parametric":
        law, laws = fit.law
        xs = np.stack([fit.points.params, fit.points.tokens])
        out["law"] = {
            "E": span(law.irreducible, laws.irreducible),
            "A": span(law.coefficients[0], laws.coefficients[:, 0]),
            "B": span(law.coefficients[1], laws.coefficients[:, 1]),
            "alpha": span(law.exponents[0], laws.exponents[:, 0]),
            "beta": span(law.exponents[1], laws.exponents[:, 1]),
            "objective": objective(law, xs, fit.points.loss),
        }
    return out


def recommendation_dict(recommendation: Recommendation) -> dict[str, Any]:
    return {
        "flops": recommendation.flops,
        "approach": recommendation.approach,
        "params": interval_dict(recommendation.params),
        "tokens": interval_dict(recommendation.tokens),
        "tokens_per_param": recommendation.tokens_per_param,
        "loss": interval_dict(recommendation.loss) if recommendation.loss else None,
    }


def forecast_dict(forecast: Forecast, target: Target) -> dict[str, Any]:
    """A forecast as `puna scaling forecast --json` prints it."""
    predicted = forecast.predict(target)
    params, tokens, flops = (number(x) for x in target.sizes(forecast.law.kind))
    law = forecast.law.power
    height, middle, steepness, ceiling = (float(x) for x in forecast.sigmoid.theta)
    step1 = (
        {"E": float(law.irreducible), "A": float(law.coefficients[0]), "B": float(law.coefficients[1])}
        | {"alpha": float(law.exponents[0]), "beta": float(law.exponents[1])}
        if law is not None
        else {"constant": number(forecast.law.constant), "slope_per_log_flops": number(forecast.law.slope)}
    )
    return {
        "target": {"params": params, "tokens": tokens, "flops": flops},
        "level": forecast.level,
        "loss": interval_dict(predicted.loss),
        "accuracy": interval_dict(predicted.accuracy),
        "step1": {"law": forecast.law.kind, **step1},
        "step2": {"height": height, "middle": middle, "steepness": steepness, "ceiling": ceiling},
        "backtest": [
            {
                "run": held.run,
                "flops": number(held.flops),
                "loss": {"seen": held.loss, **interval_dict(held.predicted.loss)},
                "accuracy": {"seen": held.accuracy, **interval_dict(held.predicted.accuracy)},
                "inside": held.inside,
            }
            for held in backtest(forecast)
        ],
        "warnings": list(forecast.warnings(target)),
    }


def interval_dict(value: Interval, standard_error: float | None = None) -> dict[str, float | None]:
    extra = {} if standard_error is None else {"standard_error": number(standard_error)}
    return {name: number(bound) for name, bound in value._asdict().items()} | extra


def number(value: Any) -> float | None:
    """A float that JSON can hold: None for NaN and infinity."""
    value = float(value)
    return value if np.isfinite(value) else None
