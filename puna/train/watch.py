"""Ends a training that hangs, and says who the others waited for.

Each process leaves a note every few seconds: where it is, and that it lives. The collectives themselves only know that
they waited.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

from puna.train.launch import World

PHASES = ("reading rows", "training", "saving")


class Note(NamedTuple):
    step: int
    phase: int
    at: float
    """When it was written."""


class Watch:
    """Watches over this process of several while a block runs."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.beat = min(5.0, seconds / 4)
        self.place, self.since = (0, 0), time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def at(self, step: int, phase: str) -> None:
        """To be called where the training gets on."""
        self.place, self.since = (step, PHASES.index(phase)), time.monotonic()

    def __enter__(self) -> Self:
        if self.world.store is not None:
            self.at(*(0, PHASES[0]))
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.ident:
            self._thread.join()

    def _watch(self) -> None:
        assert self.world.store is not None
        beaten = time.monotonic()
        while not self._ended.wait(self.beat):
            now = time.monotonic()
            # A process that was itself stopped (Ctrl-Z, a closed lid) finds that time has passed, which is no hang.
            self.since += max(0.0, now - beaten - 2 * self.beat)
            beaten = now
            self.world.store.set(f"watch/{self.world.rank}", json.dumps([*self.place, time.time()]))
            if time.monotonic() - self.since > self.seconds:
                self._end()

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
