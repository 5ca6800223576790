"""Independent jobs for engines, side by side on the cores of a CPU."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from puna.log import Log
from puna.machine import keep_freed_memory, physical_cores
from puna.train.launch import end_with


def run_jobs(function: Callable[..., Any], jobs: Sequence[tuple], log: Log, what: str) -> list[Any]:
    """function(*job) for every job, results in order. On a CPU each core has a process of one thread, since threads
    of two programs on one core cost far more than they bring; a GPU takes one job after another."""
    with log.progress(what, len(jobs)) as bar:
        if torch.cuda.is_available():
            return [_tell(bar, function(*job)) for job in jobs]
        processes = min(physical_cores(), len(jobs))
        context = get_context("spawn")
        with ProcessPoolExecutor(processes, context, _prepare, (os.getpid(),)) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            return [_tell(bar, future.result()) for future in futures]


def _tell(bar: Any, result: Any) -> Any:
    bar.advance(1)
    return result


def _prepare(parent: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
