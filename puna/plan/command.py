"""`puna plan`: from what the command line says to lines for the terminal, or to one object for --json."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from rich.table import Table

from puna.errors import PunaError
from puna.plan.layout import parse_layout
from puna.plan.machines import find_machine
from puna.plan.reliability import FAILURES_PER_GPU_DAY
from puna.plan.serve import Precision, serving
from puna.plan.table import plan_lines, serve_lines
from puna.plan.training import Settings, as_json, make_plan
from puna.pretrain.pretrain import model_config
from puna.recipe import Recipe

Line = str | Table | dict[str, Any]


def settings(
    layout: str,
    precision: str,
    tflops: float | None,
    effective: float | None,
    failures: float | None,
    storage: float | None,
    price_per_gpu_hour: float | None,
    price_per_kwh: float | None,
    pue: float,
) -> Settings:
    """The options of `puna plan`, checked; storage in GB/s."""
    if precision not in ("bf16", "fp8"):
        raise PunaError(f"precision {precision!r}: training is planned in bf16 or fp8")
    return Settings(
        layout=parse_layout(layout) if layout else {},
        fp8=precision == "fp8",
        tflops=tflops,
        effective=effective,
        failures_per_gpu_day=FAILURES_PER_GPU_DAY if failures is None else failures,
        storage=storage and storage * 1e9,
        price_per_gpu_hour=price_per_gpu_hour,
        price_per_kwh=price_per_kwh,
        pue=pue,
    )


def train(recipe: Recipe, machine: str, settings: Settings, calibrate: bool, json: bool) -> Iterator[Line]:
    found = find_machine(machine)
    if calibrate:
        if not machine.lower().startswith("this"):
            raise PunaError(f"--calibrate measures this machine, not {machine!r}; drop --machine")
        from puna.plan.calibrate import calibrate as measure

        found = measure(recipe, found)
    plan = make_plan(recipe, found, settings)
    yield from [as_json(plan)] if json else plan_lines(plan)


def serve(recipe: Recipe, machine: str, precision: str, context: int, batch: int, json: bool) -> Iterator[Line]:
    if precision not in get_args(Precision):
        raise PunaError(f"precision {precision!r}: serving is planned in {', '.join(get_args(Precision))}")
    found, config = find_machine(machine), model_config(recipe.model, recipe.tokenizer.vocab_size)
    plan = serving(config, found, precision, context, batch)  # pyright: ignore[reportArgumentType]
    if json:
        yield {"recipe": recipe.name, "machine": found.name, **dataclasses.asdict(plan)}
    else:
        yield from serve_lines(recipe.name, recipe.model.name, config, found, plan)
