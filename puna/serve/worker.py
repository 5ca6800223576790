"""One engine in a thread of its own.

The event loop never waits for a model: it puts commands into an inbox, which the thread empties before each step of the
engine, and gets each step's outputs back in one call. So a request that is cut off frees its memory before the
next step.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from puna.infer.engine import Output, Sampling
from puna.infer.grammar import Grammar
from puna.serve.errors import ApiError
from puna.serve.metrics import ModelMetrics

log = logging.getLogger("puna.serve")
Result = TypeVar("Result")
COMPILERS = 2
"""Threads that compile grammars."""


class StepEngine(Protocol):
    """What a worker needs of an engine."""

    @property
    def waiting(self) -> int: ...
    @property
    def running(self) -> int: ...
    def grammar(self, sampling: Sampling) -> Grammar | None: ...
    def add(
        self, prompt: Sequence[int], sampling: Sampling, number: int = 0, grammar: Grammar | None = None
    ) -> int: ...
    def step(self) -> list[Output]: ...
    def abort(self, request: int) -> None: ...


class Continuation(NamedTuple):
    """One completion to make; the `number`-th of those that share a seed."""

    prompt: Sequence[int]
    sampling: Sampling
    number: int = 0


@dataclass(eq=False)
class Job:
    """The sequences of one API request, on their way. Iterating gives (place, output) as steps end."""

    worker: "Worker"
    sequences: Sequence[Continuation]
    ids: list[int] = field(default_factory=list)
    """The engine's numbers; the thread's business."""
    unfinished: int = 0
    closed: bool = False
    begun: float = field(default_factory=time.monotonic)
    arrivals: asyncio.Queue[list[tuple[int, Output]] | Exception] = field(default_factory=asyncio.Queue)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Output]]:
        metrics, first = self.worker.metrics, True
        while self.unfinished:
            arrived = await self.arrivals.get()
            if isinstance(arrived, Exception):
                raise arrived
            if first:
                metrics.first_token.observe(time.monotonic() - self.begun)
                first = False
            metrics.generated_tokens.inc(sum(len(output.tokens) for _, output in arrived))
            for place, output in arrived:
                self.unfinished -= output.finish is not None
                if output.cached:
                    metrics.cached_tokens.inc(output.cached)
                yield place, output

    def close(self) -> None:
        """Free what the job holds; harmless when it is done already."""
        self.worker.close(self)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker:
    """Runs an engine for many clients at once.

    Args:
        most: sequences that may be in hand, running or waiting; more are refused with 429.
    """

    def __init__(self, engine: StepEngine, metrics: ModelMetrics, most: int = 256) -> None:
        self.engine, self.metrics, self.most = engine, metrics, most
        self.in_hand = 0
        self._seconds = 1.0  # of a sequence, lately
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, tuple[Job, int]] = {}  # the engine's number -> job, place
        self._compilers = ThreadPoolExecutor(COMPILERS, "grammar")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # In the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        self._inbox.put(None)
        self._thread.join()
        self._compilers.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    async def submit(self, sequences: Sequence[Continuation]) -> Job:
        """Hand sequences to the engine. ApiError when the queue is full or a sequence can never run."""
        self._admit(len(sequences))
        job = Job(self, sequences, unfinished=len(sequences))
        try:
            grammars = [await self._grammar(sequence.sampling) for sequence in sequences]
            await self.call(lambda: self._add(job, grammars))
        except BaseException:
            self.close(job)
            raise
        self.metrics.prompt_tokens.inc(sum(len(sequence.prompt) for sequence in sequences))
        return job

    async def _grammar(self, sampling: Sampling) -> Grammar | None:
        """What an output must follow, compiled where nobody else waits for it."""
        if not sampling.constrained:
            return None
        return await asyncio.get_running_loop().run_in_executor(self._compilers, self.engine.grammar, sampling)

    def _admit(self, count: int) -> None:
        if count > self.most:
            raise ApiError(f"{count} completions in one request; this server takes {self.most} at once", param="n")
        if self.in_hand + count > self.most:
            self.metrics.refused.inc()
            wait = str(min(60, max(1, round(self._seconds))))
            message = f"the server is full ({self.in_hand} completions in hand, {self.most} at most); try again later"
            raise ApiError(message, 429, code="server_full", headers={"Retry-After": wait})
        self.in_hand += count

    def close(self, job: Job) -> None:
        if not job.closed:
            job.closed = True
            self.in_hand -= len(job.sequences)
            self._seconds += 0.1 * (time.monotonic() - job.begun - self._seconds)
            self._inbox.put(lambda: self._abort(job))

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a function in the engine's thread, between two steps."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def tell(set_: Callable[[Any], None], value: Any) -> None:
            if not future.done():  # the caller may have gone
                set_(value)

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                loop.call_soon_threadsafe(tell, future.set_exception, error)
            else:
                loop.call_soon_threadsafe(tell, future.set_result, result)

        self._inbox.put(run)
        return await future

    # In the thread

    def _run(self) -> None:
        while True:
            busy = self.engine.running or self.engine.waiting
            try:
                command = self._inbox.get(block=not busy)
            except queue.Empty:
                self._step()
            else:
                if command is None:
                    return
                command()

    def _add(self, job: Job, grammars: Sequence[Grammar | None]) -> None:
        for place, (sequence, grammar) in enumerate(zip(job.sequences, grammars)):
            if job.closed:
                break
            number = self.engine.add(*sequence, grammar)
            job.ids.append(number)
            self._jobs[number] = job, place

    def _abort(self, job: Job) -> None:
        for number in job.ids:
            if self._jobs.pop(number, None):
                self.engine.abort(number)

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except Exception:
            log.exception("a step of the engine failed; its requests are given up")
            self._give_up()
            return
        arrived: dict[Job, list[tuple[int, Output]]] = {}
        for output in outputs:
            if output.request not in self._jobs:
                continue
            job, place = self._jobs[output.request]
            arrived.setdefault(job, []).append((place, output))
            if output.finish is not None:
                del self._jobs[output.request]
        self._deliver(arrived)

    def _give_up(self) -> None:
        error = ApiError("the engine failed at this request; the server's log says why", 500)
        jobs = {job for job, _ in self._jobs.values()}
        for number in list(self._jobs):
            try:
                self.engine.abort(number)
            except Exception:
                log.exception("request %d cannot be taken out of the engine", number)
        self._jobs.clear()
        self._deliver(dict.fromkeys(jobs, error))

    def _deliver(self, arrived: dict[Job, Any]) -> None:
        def put() -> None:
            for job, what in arrived.items():
                job.arrivals.put_nowait(what)

        assert self._loop is not None
        if arrived:
            self._loop.call_soon_threadsafe(put)
