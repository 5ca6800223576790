"""Failures, checkpoints and the time they cost.

Failures are taken as independent and proportional to GPUs and time, at the rate that the paper counted: 419 unexpected
interruptions and 47 planned ones in 54 days on 16,384 GPUs (section 3.3.4, table 5).
"""

import math
from dataclasses import dataclass

from puna.plan.published import FAILURE_DAYS, FAILURE_GPUS, PLANNED, UNEXPECTED

FAILURES_PER_GPU_DAY = UNEXPECTED / (FAILURE_DAYS * FAILURE_GPUS)
PLANNED_PER_DAY = PLANNED / FAILURE_DAYS
RESTART_MINUTES = 10.0
"""From an interruption to the first new step; the paper gives none, this is ours."""
STORAGE_PER_PROCESSOR = 2e12 / 16_384
"""Bytes a second: Tectonic's 2 TB/s sustained for the paper's 16,384 GPUs (section 3.3.1)."""
LEAST_STORAGE = 2e9
"""Bytes a second of one machine's own disk; ours."""


@dataclass(frozen=True)
class Reliability:
    """Seconds, except where said."""

    checkpoint_bytes: float
    write: float
    """Of one checkpoint; training waits for it (asynchronous writing hides most)."""
    interval: float
    """Between checkpoints, with the least time lost."""
    mean_time_between: float
    """Unexpected interruptions."""
    unexpected: float
    """Interruptions in the run."""
    planned: float
    effective: float
    """Share of the time that trains."""


def best_interval(write: float, between: float) -> float:
    """Daly's interval (Future Generation Computer Systems 22, 2006): Young's sqrt(2 write between) with two more terms;
    for writes longer than twice the time between failures, that time."""
    if write >= 2 * between:
        return between
    x = write / (2 * between)
    return math.sqrt(2 * write * between) * (1 + math.sqrt(x) / 3 + x / 9) - write


def reliability(
    parameters: int,
    gpus: int,
    busy_seconds: float,
    failures_per_gpu_day: float = FAILURES_PER_GPU_DAY,
    storage: float | None = None,
    restart_minutes: float = RESTART_MINUTES,
) -> Reliability:
    """What interruptions make of a run that trains for `busy_seconds`; `storage` in bytes a second.

    A checkpoint holds weights and both moments in fp32. A failure costs the restart and half an interval; planned
    maintenance only the restart, and comes in proportion to the GPUs.
    """
    size = 12.0 * parameters
    write = size / (storage or max(LEAST_STORAGE, STORAGE_PER_PROCESSOR * gpus))
    between = 86_400 / (failures_per_gpu_day * gpus) if failures_per_gpu_day else math.inf
    interval = best_interval(write, between) if between < math.inf else math.inf
    planned_rate = PLANNED_PER_DAY / 86_400 * min(1.0, gpus / FAILURE_GPUS)
    restart = 60 * restart_minutes
    # a period is an interval of work and a write
    lost = write / (interval + write) + (restart + (interval + write) / 2) / between if between < math.inf else 0.0
    effective = max(0.0, 1 - lost - planned_rate * restart)
    wall = busy_seconds / effective if effective else math.inf
    return Reliability(size, write, interval, between, wall / between, wall * planned_rate, effective)
