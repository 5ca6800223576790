"""Data-parallel processes: one thread a core on a CPU, one process a GPU; torchrun's when it started us."""

import multiprocessing.util
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from puna.errors import PunaError
from puna.machine import keep_freed_memory, physical_cores
from puna.recipe import Training
from puna.train.shared import Neighbours, SharedVectors

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    neighbours: Neighbours | None = None

    def vector(self, length: int) -> tuple[torch.Tensor, Callable[[], object]]:
        """An fp32 vector of zeros, and what makes it the sum over processes: the quickest way there is."""
        if self.neighbours:
            shared = SharedVectors(length, self.rank, self.size, self.neighbours)
            return shared.mine, shared.sum
        vector = torch.zeros(length, device=self.device)
        return vector, lambda: self.sum(vector)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of a small tensor over processes, in place."""
        if self.neighbours:
            return self.neighbours.sum(tensor)
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


def count_processes(options: Training) -> int:
    """How many processes share a step: as asked, or the most cores or GPUs that divide its micro-batches."""
    micro_batches = options.batch_rows // options.micro_rows
    if options.processes == "auto":
        most = torch.cuda.device_count() or physical_cores()
        return max(n for n in range(1, most + 1) if micro_batches % n == 0)
    if micro_batches % options.processes:
        raise PunaError(
            f"processes = {options.processes} does not divide the {micro_batches} micro-batches of a step "
            f"(batch_rows {options.batch_rows} / micro_rows {options.micro_rows}); use a divisor"
        )
    return options.processes


def launch(function: Callable[..., None], processes: int, *args: Any) -> None:
    """Call function(world, *args) in every process and wait. `function` and `args` must be picklable."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun made the processes
        _call(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://", None, None, function, args)
    elif processes == 1:
        threads = torch.get_num_threads()
        try:
            _call(0, 1, "", None, None, function, args)
        finally:
            torch.set_num_threads(threads)
    else:
        with tempfile.TemporaryDirectory() as folder:
            barrier = torch.multiprocessing.get_context("spawn").Barrier(processes)
            arguments = (processes, f"file://{folder}/meeting", os.getpid(), (Path(folder), barrier), function, args)
            try:
                torch.multiprocessing.spawn(_call, arguments, nprocs=processes)
            except torch.multiprocessing.ProcessRaisedException as error:
                mark = f"{PunaError.__module__}.{PunaError.__name__}: "
                if mark in str(error):  # the child's traceback as text: the message is all a user needs
                    raise PunaError(str(error).rpartition(mark)[2].strip()) from None
                raise


def _call(
    rank: int,
    size: int,
    meeting: str,
    parent: int | None,
    shared: tuple[Path, Any] | None,
    function: Callable[..., None],
    args: tuple,
) -> None:
    device = torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else CPU
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        torch.set_num_threads(1)  # threads of several processes on the same cores cost up to ten times
    if parent is not None:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    if size > 1:
        if meeting.startswith("file"):  # all on this machine: never ask the network for our own name
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, meeting, timedelta(minutes=10), world_size=size, rank=rank)
    try:
        neighbours = Neighbours(rank, size, *shared) if shared and device == CPU else None
        function(World(rank, size, device, neighbours), *args)
    finally:
        if size > 1:
            dist.destroy_process_group()
    if parent is not None:
        # Python's own ending would abort now and then: gloo's threads outlive their group (torch 2.13) and may be about
        # to let go of a tensor, for which they need the interpreter. What a process owes the system is done first.
        multiprocessing.util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def end_with(parent: int) -> None:
    """End when the parent is gone: after a kill -9 nobody else would tell us."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
