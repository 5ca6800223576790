"""Runs the shards of a pass, on a pool of processes or on Ray, whatever becomes of the workers.

A job is one shard: a function that writes a folder. The folder is written aside and renamed when it is whole, so one
that is there is done, whenever the run was killed. A worker that dies is replaced and its shard tried again; when that
dies too, the shard is halved, and the halves that kill their worker are halved again, until the rows that do it are
found: they are set aside and the shard is made without them.

Nothing here decides what comes out: a folder depends on its job alone.
"""

import os
import resource
import shutil
import signal
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from puna.errors import PunaError
from puna.log import Log
from puna.recipe import Corpus


@dataclass(frozen=True)
class Rows:
    """The rows of a shard to work on: from `first` and before `end`, those in `poison` set aside untouched."""

    first: int = 0
    end: int = 1 << 32
    poison: frozenset[int] = frozenset()


@dataclass(frozen=True, eq=False)
class Job:
    """One shard of one pass; goes to another process, so its functions are of a module."""

    make: Callable[[Any, Path, Rows], None]
    """make(spec, folder, rows) fills an empty folder."""
    count: Callable[[Any, Path], int]
    """count(spec, scratch folder) -> how many rows the shard has."""
    spec: Any
    target: Path


Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments."""


class Died:
    """What comes of a call whose worker died."""


@dataclass
class Failed:
    """What comes of a call that raised an exception."""

    error: Exception


class Engine(Protocol):
    """Does calls, each in some worker, as many at a time as there are workers."""

    def outcomes(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """The number of each call and what came of it, as they end: a value, a Failed or a Died."""
        ...


# -- jobs --------------------------------------------------------------------------------------------------------------


def run_jobs(engine: Engine, jobs: Sequence[Job], log: Log, title: str) -> None:
    """Make the folders that are not there. Raises what a job raises; what is finished by then stays."""
    owed = [job for job in jobs if not job.target.exists()]
    with log.progress(title, len(jobs)) as bar:
        bar.advance(len(jobs) - len(owed))
        for job in owed:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(owed)  # what a killed run has left
        dead = _attempt(engine, {job: Rows() for job in owed}, bar)
        dead = _attempt(engine, {job: Rows() for job in dead}, bar)  # perhaps something else took the memory
        if blamed := dead:
            log.message(f"{title}: {len(dead)} shards kill their workers; looking for the pages that do it")
            poison = find_poison(engine, dead)
            if dead := _attempt(engine, {job: Rows(poison=poison[job]) for job in dead}, bar):
                raise PunaError(
                    f"{title}: the worker dies at {dead[0].spec}, though no single page of it is to blame; give it "
                    "more memory: a smaller corpus.workers, or a larger corpus.worker_memory_gb. Finished shards are "
                    "kept, so run again"
                )
            _sweep(blamed)


def _sweep(jobs: Iterable[Job]) -> None:
    """Remove what dead workers have left."""
    for job in jobs:
        for aside in job.target.parent.glob(f".{job.target.name}.*"):
            shutil.rmtree(aside, ignore_errors=True)


def run_here(make: Callable[[Path], None], target: Path) -> Path:
    """Make one folder in this process if it is not there: what takes all shards together."""
    job = Job(lambda _, folder, rows: make(folder), lambda _, folder: 1, None, target)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep([job])
        _make(job, Rows())
    return target


def find_poison(engine: Engine, jobs: Sequence[Job]) -> dict[Job, frozenset[int]]:
    """The rows of each job that kill a worker by themselves, by halving; all jobs at once."""
    poison: defaultdict[Job, set[int]] = defaultdict(set)
    ranges: list[tuple[Job, int, int]] = []
    for job, count in zip(jobs, _in_order(engine, [(_count, (job,)) for job in jobs])):
        if isinstance(count, Died):
            raise PunaError(f"reading {job.spec} kills the worker; move that away and run again")
        ranges += _halves(job, 0, count)
    while ranges:
        outcomes = _in_order(engine, [(_probe, (job, Rows(first, end))) for job, first, end in ranges])
        deadly = [range_ for range_, outcome in zip(ranges, outcomes) if isinstance(outcome, Died)]
        ranges = []
        for job, first, end in deadly:
            if end - first == 1:
                poison[job].add(first)
            else:
                ranges += _halves(job, first, end)
    return {job: frozenset(poison[job]) for job in jobs}


def _halves(job: Job, first: int, end: int) -> list[tuple[Job, int, int]]:
    middle = (first + end + 1) // 2
    return [(job, a, b) for a, b in ((first, middle), (middle, end)) if a < b]


def _attempt(engine: Engine, jobs: dict[Job, Rows], bar: Any) -> list[Job]:
    """Do the jobs; those whose worker died."""
    dead = []
    order = list(jobs)
    for number, outcome in engine.outcomes([(_make, (job, rows)) for job, rows in jobs.items()]):
        if isinstance(outcome, Failed):
            raise outcome.error
        if isinstance(outcome, Died):
            dead.append(number)
        else:
            bar.advance()
    return [order[number] for number in sorted(dead)]


def _in_order(engine: Engine, calls: Sequence[Call]) -> list[Any]:
    outcomes = dict(engine.outcomes(calls))
    for outcome in outcomes.values():
        if isinstance(outcome, Failed):
            raise outcome.error
    return [outcomes[number] for number in range(len(calls))]


def _make(job: Job, rows: Rows) -> None:
    """In a worker: write the folder aside, then rename it."""
    with _aside(job) as folder:
        job.make(job.spec, folder, rows)
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        if not job.target.exists():  # else a worker that was given up for dead has ended it, with the same bytes
            folder.rename(job.target)


def _probe(job: Job, rows: Rows) -> None:
    """In a worker: work on some rows and throw the result away."""
    with _aside(job) as folder:
        job.make(job.spec, folder, rows)


def _count(job: Job) -> int:
    with _aside(job) as folder:
        return job.count(job.spec, folder)


@contextmanager
def _aside(job: Job) -> Iterator[Path]:
    folder = job.target.with_name(f".{job.target.name}.{os.uname().nodename}-{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)  # of a dead process with the same number
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process after so much CPU time. The kernel sees to it, whatever library is at work and whoever holds
    the interpreter; CPU time, so that a busy machine changes nothing."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


# -- engines -----------------------------------------------------------------------------------------------------------


@contextmanager
def open_engine(knobs: Corpus) -> Iterator[Engine]:
    """The engine that the recipe names; its workers end with it."""
    engine = ENGINES[knobs.engine](knobs)
    try:
        yield engine
    finally:
        engine.close()


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """In a worker: the value, or the exception with its traceback as a note."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        return Failed(error)


class Inline:
    """In this process, one after the other: for a debugger or a profiler. A deadly page ends the run."""

    def __init__(self, knobs: Corpus) -> None:
        pass

    def outcomes(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        for number, (function, arguments) in enumerate(calls):
            yield number, _call(function, arguments)

    def close(self) -> None:
        pass


class Pool:
    """Processes on this machine, each with a pipe: of a dead one it is known which call it had.

    They are spawned, not forked: this process may have threads.
    """

    def __init__(self, knobs: Corpus) -> None:
        self.workers, self.memory = knobs.workers, int(knobs.worker_memory_gb * 1e9)
        self.idle: list[tuple[Any, Connection]] = []

    def outcomes(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        waiting = deque(enumerate(calls))
        busy: dict[Connection, tuple[int, Any]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    process, connection = self.idle.pop() if self.idle else self._start()
                    number, call = waiting.popleft()
                    connection.send(call)
                    busy[connection] = number, process
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    number, process = busy.pop(connection)
                    try:
                        outcome = connection.recv()
                        self.idle.append((process, connection))
                    except (EOFError, OSError):
                        process.join()
                        connection.close()
                        outcome = Died()
                    yield number, outcome
        finally:
            _end(busy_process for _, busy_process in busy.values())

    def _start(self) -> tuple[Any, Connection]:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.memory), daemon=True)
        process.start()
        theirs.close()  # so that its death closes the pipe
        return process, ours

    def close(self) -> None:
        _end(process for process, _ in self.idle)


def _end(processes: Iterable[Any]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _work(connection: Connection, memory: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    _die_with_parent()
    _limit_memory(memory)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        connection.send(_call(function, arguments))


def _die_with_parent() -> None:
    """A worker in the middle of a shard would not notice."""
    if parent := parent_process():

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _limit_memory(memory: int) -> None:
    """A page that asks for more gets an error, and the machine stays whole."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (memory if hard < 0 else min(memory, hard), hard))


class Ray:
    """Tasks of a Ray cluster. Its machines share the file system that holds the run (or `corpus.work`) and the source,
    and have puna installed."""

    def __init__(self, knobs: Corpus) -> None:
        try:
            import ray
        except ImportError as error:
            raise PunaError("corpus.engine = 'ray' needs Ray: pip install 'puna[ray]'") from error
        self.ray = ray
        self.memory = int(knobs.worker_memory_gb * 1e9)
        quiet: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        if knobs.ray_address:
            ray.init(address=knobs.ray_address, log_to_driver=False)
        else:
            ray.init(address="local", num_cpus=knobs.workers, **quiet)
        self.call = ray.remote(max_retries=0, num_cpus=1)(_ray_call)

    def outcomes(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        ray = self.ray
        waiting, running = deque(enumerate(calls)), {}
        ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < ahead:
                number, (function, arguments) = waiting.popleft()
                running[self.call.remote(self.memory, function, arguments)] = number
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ended)
            try:
                outcome = ray.get(ended)
            except (WorkerCrashedError, OutOfMemoryError, NodeDiedError):
                outcome = Died()
            yield number, outcome

    def close(self) -> None:
        self.ray.shutdown()


def _ray_call(memory: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    _limit_memory(memory)
    return _call(function, arguments)


ENGINES: dict[str, Callable[[Corpus], Any]] = {"pool": Pool, "ray": Ray, "inline": Inline}
