"""Jobs that kill their workers; a module of its own, for a worker imports it anew each time."""

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna.corpus.engine import Rows, time_limit
from puna.errors import PunaError

COUNT = 6
DEATHS: dict[str, Callable[[], Any]] = {
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: ctypes.memset(ctypes.CDLL(None).malloc(3_000_000_000), 1, 3_000_000_000),
    "hang": lambda: [None for _ in iter(int, 1)],
}


def write_rows(deadly: dict[int, str], folder: Path, rows: Rows) -> None:
    """A line for each row; some rows kill the process that looks at them."""
    lines = []
    for row in range(rows.first, min(rows.end, COUNT)):
        if row in rows.poison:
            lines.append(f"{row} set aside\n")
        else:
            with time_limit(0.3):
                if row in deadly:
                    DEATHS[deadly[row]]()
            lines.append(f"{row}\n")
    (folder / "rows.txt").write_text("".join(lines))


def die_once(marks: Path, folder: Path, rows: Rows) -> None:
    """As when something else on the machine takes the memory."""
    mark = marks / "died"
    if not mark.exists():
        mark.touch()
        os._exit(1)
    write_rows({}, folder, rows)


def die_of_all(_: Any, folder: Path, rows: Rows) -> None:
    """No single row is to blame."""
    if min(rows.end, COUNT) - rows.first > 1:
        os._exit(1)


def fail(_: Any, folder: Path, rows: Rows) -> None:
    raise PunaError("the disk is full")


def count(spec: Any, folder: Path) -> int:
    return COUNT


def count_deadly(spec: Any, folder: Path) -> int:
    os._exit(1)
