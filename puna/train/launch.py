"""The processes of a training: one thread a core on a CPU, one process a GPU; torchrun's when it started us.

Under torchrun the process of rank 0 runs the recipe and owns the artifacts; the others follow: they take part in every
`launch` and do nothing else.
"""

import atexit
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from puna.errors import PunaError
from puna.machine import keep_freed_memory, physical_cores
from puna.recipe import Training
from puna.train.shared import Neighbours, SharedVectors

CPU = torch.device("cpu")
PATIENCE = timedelta(hours=2)
"""Of a single exchange; the training loop notices much earlier that it hangs (watch.py)."""


class Preempted(KeyboardInterrupt):
    """A SIGTERM ended the training, and nothing is lost."""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    neighbours: Neighbours | None = None
    store: dist.Store | None = None
    """What the processes leave each other notes in."""

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
    """How many processes share a step: as asked, or the most cores or GPUs that divide its micro-batches; a multiple of
    those that hold the model between them."""
    micro_batches = options.batch_rows // options.micro_rows
    layout = options.layout
    if options.processes == "auto":
        most = (torch.cuda.device_count() or physical_cores()) // layout.model_size
        copies = max(n for n in range(1, max(1, most) + 1) if micro_batches % n == 0)
        return layout.model_size * (layout.dp if isinstance(layout.dp, int) else copies)
    if layout.is_plain and micro_batches % options.processes:
        raise PunaError(
            f"processes = {options.processes} does not divide the {micro_batches} micro-batches of a step "
            f"(batch_rows {options.batch_rows} / micro_rows {options.micro_rows}); use a divisor"
        )
    layout.over(options.processes)
    return options.processes


def launch(function: Callable[..., None], processes: int, *args: Any) -> None:
    """Call function(world, *args) in every process and wait. `function` and `args` must be picklable.

    Raises what one of them raised as a PunaError, and Preempted when a SIGTERM ended them.
    """
    if under_torchrun():
        store, number = meeting(), next_call()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if rank == 0:
            store.set(f"call/{number}", pickle.dumps((function, args)))  # pyright: ignore[reportArgumentType]
        _call(rank, size, dist.PrefixStore(f"group/{number}", store), None, function, args)
    elif processes == 1:
        _call(0, 1, None, None, function, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            barrier = multiprocessing.get_context("spawn").Barrier(processes)
            arguments = (processes, f"{folder}/meeting", (Path(folder), barrier), function, args)
            _spawn(arguments, processes)


def _spawn(arguments: tuple[Any, ...], processes: int) -> None:
    """As torch.multiprocessing.spawn, but a SIGTERM is passed on, so that the processes can save what they have."""
    context = start_processes(_call, arguments, processes, join=False, start_method=_start_method())
    assert context is not None
    terminated: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        terminated.append(number)
        for process in multiprocessing.active_children():
            if process.pid in pids:
                process.terminate()

    pids = context.pids()

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, pass_on) if is_main else None
    try:
        while not context.join():
            pass
    except torch.multiprocessing.ProcessRaisedException as error:
        mark = f"{PunaError.__module__}.{PunaError.__name__}: "
        if mark in str(error):  # the child's traceback as text: the message is all a user needs
            raise PunaError(str(error).rpartition(mark)[2].strip()) from None
        raise
    except torch.multiprocessing.ProcessExitedException as error:
        if not terminated:
            raise PunaError(f"a training process ended unasked: {error}; the same command goes on from here") from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
    if terminated:
        raise Preempted("stopped by SIGTERM")


def _start_method() -> str:
    """On a CPU processes are forked from one that has only imported what they all need: that takes a second or two of
    a core, which each of them would take again. CUDA cannot be forked."""
    if sys.platform != "linux" or torch.cuda.is_available():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["puna.train.loop", "puna.parallel.parts"])
    return "forkserver"


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@cache
def meeting() -> dist.Store:
    """A part of torchrun's store that belongs to this start of the processes.

    torchrun keeps one store through all restarts, so what was written before a restart is still there: rank 0 names a
    part of its own, and tells the name to whoever asks with a name that was never used.
    """
    rank, size, name = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), uuid.uuid4().hex
    store = next(dist.rendezvous("env://"))[0]
    if rank == 0:
        threading.Thread(target=_welcome, args=(name, size), daemon=True).start()
        return dist.PrefixStore(name, store)
    store.set(f"hello/{rank}", name)
    store.wait([f"welcome/{name}"], PATIENCE)
    return dist.PrefixStore(store.get(f"welcome/{name}").decode(), store)


def _welcome(name: str, size: int) -> None:
    store = next(dist.rendezvous("env://"))[0]  # a connection of its own: the other one may be waiting
    known: set[bytes] = set()
    while True:
        for rank in range(1, size):
            if store.check([f"hello/{rank}"]) and (guest := store.get(f"hello/{rank}")) not in known:
                known.add(guest)
                store.set(f"welcome/{guest.decode()}", name)
        time.sleep(0.1)


_calls = 0


def next_call() -> int:
    """The number of this launch: all processes count alike."""
    global _calls
    _calls += 1
    return _calls - 1


def follow() -> bool:
    """Under torchrun in another process than that of rank 0, take part in its launches until it ends, and return True.

    False elsewhere: then this process is the one that runs the recipe.
    """
    if not under_torchrun():
        return False
    store = meeting()
    if os.environ["RANK"] == "0":
        atexit.register(lambda: store.set(f"call/{_calls}", pickle.dumps(None)))  # pyright: ignore[reportArgumentType]
        return False
    while True:
        try:
            store.wait([f"call/{_calls}"], timedelta(minutes=10))
        except dist.DistStoreError:
            continue  # rank 0 is busy with work of its own
        call = pickle.loads(store.get(f"call/{_calls}"))
        if call is None:
            return True
        function, args = call
        launch(function, 0, *args)


def _call(
    rank: int,
    size: int,
    store: dist.Store | str | None,
    shared: tuple[Path, Any] | None,
    function: Callable[..., None],
    args: tuple,
) -> None:
    here = int(os.environ.get("LOCAL_RANK", rank))
    device = torch.device("cuda", here % torch.cuda.device_count()) if torch.cuda.is_available() else CPU
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        if size > 1:  # threads of several processes on the same cores cost up to ten times
            torch.set_num_threads(1)
    if shared:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    if isinstance(store, str):  # a file, for all are on this machine: never ask the network for our own name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        store = dist.FileStore(store, size)
    if store is not None:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, world_size=size, rank=rank, store=store)
    try:
        neighbours = Neighbours(rank, size, *shared) if shared and device == CPU else None
        function(World(rank, size, device, neighbours, store), *args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if shared:
        # Python's own ending would abort now and then: gloo's threads outlive their group (torch 2.13) and may be about
        # to let go of a tensor, for which they need the interpreter. What a process owes the system is done first.
        multiprocessing.util._exit_function()  # pyright: ignore[reportAttributeAccessIssue]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with_launcher() -> None:
    """As end_with, for the process that called `launch`: between it and us may be the one that we were forked from,
    which lives as long as we do."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os._exit(1)


def end_with(parent: int) -> None:
    """End when the parent is gone: after a kill -9 nobody else would tell us."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
