"""The layout to take: the fastest that fits, and what keeps it from being faster."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from puna.errors import PunaError
from puna.plan.layout import Job, Layout, layouts, why_not
from puna.plan.machines import GIB, Machine
from puna.plan.memory import Memory, training_memory
from puna.plan.speed import Step, step_time

COMFORT = 0.96
"""Share of memory that a recommended layout fills at most, where one can: as much as, by this estimate, the paper's
layout on 8,192 GPUs."""
CAUTION = 1.2
"""A layout with context parallelism must be faster by so much than one without: torchtitan's rows with it are slower
than counted by 5 to 50% (published.py); ours."""
CLOSE = 1.02
"""Layouts within so much of the fastest count as equal, and the simplest of them is taken; ours."""


@dataclass(frozen=True)
class Choice:
    """One layout on the part of the machine that it fills."""

    layout: Layout
    machine: Machine
    memory: Memory
    step: Step

    @property
    def need(self) -> float:
        """Bytes of a processor, with what lies outside the allocator."""
        return self.memory.reserved + self.machine.processor.outside

    @property
    def fits(self) -> bool:
        return self.need <= self.machine.processor.memory

    @property
    def fits_well(self) -> bool:
        return self.need <= COMFORT * self.machine.processor.memory

    @property
    def expected(self) -> float:
        """Seconds of a step, with caution, to choose by."""
        return self.step.seconds * (CAUTION if self.layout.cp > 1 else 1.0)

    @property
    def cost(self) -> tuple[float, ...]:
        """Simplicity, for layouts of equal speed."""
        a = self.layout
        return (a.pp, a.cp, a.tp, a.stages, a.shard, a.micro, {"none": 0, "selective": 1, "full": 2}[a.recompute])


def evaluate(job: Job, layout: Layout, machine: Machine) -> Choice:
    return Choice(layout, machine, training_memory(job, layout), step_time(job, layout, machine))


class Recommendation(NamedTuple):
    best: Choice
    binds: list[str]
    """Sentences on what keeps it from being faster."""
    others: list[Choice]
    """Other degrees that fit, each with its fastest settings, fastest first."""


def choose(job: Job, machine: Machine, given: dict[str, int | str] | None = None) -> Recommendation:
    """The recommended layout with what is `given`.

    A batch too small for the whole machine gets the largest half, quarter, ... that it fills. Where nothing fits, the
    layout that needs least memory comes back, with `fits` false. Raises PunaError for a layout that cannot be.
    """
    given = given or {}
    if {"tp", "cp", "pp", "dp"} <= given.keys():
        reason = why_not(Layout(**given), job, machine)  # pyright: ignore[reportArgumentType]
        if reason:
            raise PunaError(f"layout: {reason}")
    choices: list[Choice] = []
    part = machine
    while not choices and part.count >= 1:
        choices = [evaluate(job, layout, part) for layout in layouts(job, part, given)]
        smaller = part.count // 2 if part.count % 2 == 0 else part.count - 1
        part = dataclasses.replace(part, count=smaller)
    if not choices:
        raise PunaError(f"layout {given}: no layout with it fills {machine.name}; leave some of it out")
    fitting = [choice for choice in choices if choice.fits]
    if not fitting:
        best = min(choices, key=lambda choice: choice.need)
        lack = best.need / best.machine.processor.memory
        line = f"memory: the leanest layout needs {lack:,.1f} times what a processor has"
        enough = None if given else fewest(job, machine)
        return Recommendation(best, [line + (f"; {enough.name} would do" if enough else "")], [])
    best = _fastest([choice for choice in fitting if choice.fits_well] or fitting)
    fastest: dict[tuple[int, ...], Choice] = {}
    for choice in sorted(fitting, key=lambda choice: (choice.expected, choice.cost)):
        fastest.setdefault(choice.layout.degrees, choice)
    fastest.pop(best.layout.degrees)
    return Recommendation(best, _binds(job, best, _fastest(choices), machine), list(fastest.values()))


def fewest(job: Job, machine: Machine) -> Machine | None:
    """The smallest machine of the same processors, doubled again and again, on which something fits."""
    count = machine.count
    while (count := 2 * count) <= 32_768:
        p = dataclasses.replace(machine.processor, node=min(count, 8))
        larger = Machine(p, count)
        if any(evaluate(job, layout, larger).fits for layout in layouts(job, larger)):
            return larger
    return None


def _fastest(choices: Iterable[Choice]) -> Choice:
    choices = list(choices)
    limit = min(choice.expected for choice in choices) * CLOSE
    return min((c for c in choices if c.expected <= limit), key=lambda c: (c.cost, c.expected))


def _binds(job: Job, best: Choice, free: Choice, machine: Machine) -> list[str]:
    """What keeps the layout from being faster, largest first where it can be counted."""
    lines = []
    if best.machine.count < machine.count:
        rows = job.batch_rows
        lines.append(f"batch: {rows:,} rows fill {best.machine.count:,} of {machine.count:,} processors")
    if (gain := best.step.seconds / free.step.seconds - 1) > 0.01:
        lines.append(
            f"memory: {free.layout}, recompute {free.layout.recompute}, would be {gain:.0%} faster "
            f"but needs {free.need / GIB:,.0f} GiB"
        )
    step = best.step
    losses = {
        "pipeline bubble": step.bubble,
        "recomputation": step.recompute,
        "tensor-parallel communication": step.tp,
        "context-parallel communication": step.cp,
        "FSDP communication not hidden": step.dp,
        "memory bandwidth": step.elementwise,
    }
    largest = sorted(losses.items(), key=lambda item: -item[1])
    shares = [f"{name} {value / step.seconds:.0%}" for name, value in largest if value > 0.02 * step.seconds]
    return [*lines, *([f"time: {', '.join(shares)} of a step"] if shares else [])]
