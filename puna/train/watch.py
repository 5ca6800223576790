"""Ends a training that hangs, and says who the others waited for; names a process that is slower than the others.

Each process leaves a note every few seconds: where it is, that it lives, and how fast it is itself. The collectives
themselves only know that they waited.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from statistics import median_low
from types import TracebackType
from typing import NamedTuple, Self

import torch

from puna.log import Log
from puna.train.launch import World

PHASES = ("reading rows", "training", "saving")
LOOK = 6
"""Rank 0 compares speeds with every so many of its notes..."""
PATIENCE = 3
"""...and names a process that was the slow one so many times in a row."""


class Note(NamedTuple):
    step: int
    phase: int
    at: float
    """When it was written."""
    pace: float = 0.0
    """Seconds of its own work for a step, or for a product of matrices; 0 while not known."""


class Watch:
    """Watches over this process of several while a block runs."""

    def __init__(self, world: World, seconds: float, straggler: float = 0.0) -> None:
        """A process that takes `straggler` times as long as the median is slow; 0 names none."""
        self.world, self.seconds, self.factor = world, seconds, straggler
        self.pace, self._steps, self._counted, self._due = 0.0, 0, (0, 0.0), True
        self._own: float | None = None
        self._slow: list[tuple[int, float]] = []
        self._told: int | None = None
        self.beat = min(5.0, seconds / 4)
        self.place, self.since = (0, 0), time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def at(self, step: int, phase: str) -> None:
        """To be called where the training gets on."""
        self.place, self.since = (step, PHASES.index(phase)), time.monotonic()

    def worked(self, own: float | None, device: torch.device) -> None:
        """To be called after each step with the seconds that this process has worked in all of them without waiting for
        others; None if that is not known: then now and then a product of matrices is timed instead."""
        self._steps, self._own = self._steps + 1, own
        if own is None and self._due and self.world.store is not None and self.factor:
            self._due, self.pace = False, product_seconds(device)

    def straggler(self, log: Log) -> dict[str, float]:
        """The rank that has been slow for some time and how many times the median it takes, for the log; the first time
        it is told in words."""
        if len(self._slow) < PATIENCE:
            return {}
        rank, factor = self._slow[-1]
        if self._told != rank:
            self._told = rank
            log.message(f"rank {rank} is slow: it takes {factor:.1f} times as long as the median (straggler)")
        return {"straggler": rank, "straggler_factor": factor}

    def __enter__(self) -> Self:
        if self.world.store is not None:
            self.at(0, PHASES[0])
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.ident:
            self._thread.join()

    def _watch(self) -> None:
        assert self.world.store is not None
        beaten, beats = time.monotonic(), 0
        while not self._ended.wait(self.beat):
            now = time.monotonic()
            # A process that was itself stopped (Ctrl-Z, a closed lid) finds that time has passed, which is no hang.
            self.since += max(0.0, now - beaten - 2 * self.beat)
            beaten = now
            beats += 1
            self._measure()
            self.world.store.set(f"watch/{self.world.rank}", json.dumps([*self.place, time.time(), self.pace]))
            if beats % LOOK == 0:
                self._due = True
                if self.world.rank == 0 and self.factor:
                    self._compare()
            if time.monotonic() - self.since > self.seconds:
                self._end()

    def _measure(self) -> None:
        """The pace since the last note, from the seconds of work."""
        steps, own = self._steps, self._own
        if own is not None and steps > self._counted[0]:
            self.pace = (own - self._counted[1]) / (steps - self._counted[0])
            self._counted = (steps, own)

    def _compare(self) -> None:
        found = slowest({rank: note.pace for rank, note in self._notes().items() if note and note.pace}, self.factor)
        same = found and self._slow and self._slow[-1][0] == found[0]
        self._slow = [*(self._slow if same else []), found][-PATIENCE:] if found else []

    def _end(self) -> None:
        """The first of those that wait tells; one that others wait for shows where it is."""
        notes = self._notes()
        late = late_ones(notes, time.time(), 3 * self.beat)
        rank = self.world.rank
        waiting = [other for other in notes if other not in late]
        if rank in late or rank == min(waiting, default=rank):
            print(describe(notes, late, rank, self.place[0], self.seconds), file=sys.stderr)
            faulthandler.dump_traceback(all_threads=True)
            sys.stderr.flush()
        else:
            time.sleep(self.beat)  # so that those are heard first
        os._exit(1)

    def _notes(self) -> dict[int, Note | None]:
        store = self.world.store
        assert store is not None
        notes: dict[int, Note | None] = {}
        for rank in range(self.world.size):
            key = f"watch/{rank}"
            notes[rank] = Note(*json.loads(store.get(key))) if store.check([key]) else None
        return notes


def slowest(paces: Mapping[int, float], factor: float) -> tuple[int, float] | None:
    """The rank that takes longest and how many times the (lower) median it takes, if that is more than `factor`."""
    if len(paces) < 2:
        return None
    rank = max(paces, key=lambda rank: paces[rank])
    times = paces[rank] / median_low(paces.values())
    return (rank, times) if times > factor else None


def product_seconds(device: torch.device) -> float:
    """Seconds of a fixed amount of work that waits for nobody: a tenth of a second or less."""
    size = 4096 if device.type == "cuda" else 384
    a = torch.ones(size, size, device=device)
    seconds = 0.0
    for turn in range(5):
        start = time.monotonic()
        torch.matmul(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += (time.monotonic() - start) * (turn > 0)  # the first may load what the others use
    return seconds


def late_ones(notes: Mapping[int, Note | None], now: float, silence: float) -> list[int]:
    """The ranks that the others wait for: silent ones, else those that are not where the furthest are."""
    silent = [rank for rank, note in notes.items() if note is None or now - note.at > silence]
    if silent:
        return silent
    places = {rank: note[:2] for rank, note in notes.items() if note}
    return [rank for rank, place in places.items() if place < max(places.values())]


def describe(notes: Mapping[int, Note | None], late: list[int], rank: int, step: int, seconds: float) -> str:
    """What happened, in words."""
    parts = []
    for other in late:
        note = notes[other]
        place = f"last seen {PHASES[note.phase]} of step {note.step + 1:,}" if note else "never seen"
        parts.append(f"rank {other} ({place})")
    who = ", ".join(parts) or "nobody in particular: all are at the same place"
    return f"rank {rank}: step {step + 1:,} has not got on for {seconds:g} seconds (hang_seconds); late is {who}"
