"""Where the time of a training goes, over all its restarts: its effective training time (section 3.3.4)."""

import json
import time
from pathlib import Path

CAUSES = {
    "useful": "steps that count",
    "data": "waiting for rows",
    "checkpoints": "waiting for checkpoints",
    "repeated": "steps done again or gone back from",
    "skipped": "steps that were not taken",
    "starting": "starting, with the first step of each start, which compiles",
    "stopped": "stopped: between an end and the next start",
}
WRITE_SECONDS = 2.0
"""A killed process loses so much of the account; it counts as stopped."""
KNOWN = 100
"""Newest checkpoints for which it is known what was useful until then."""


class Clock:
    """Gives every second since the first start of a training to one of the causes."""

    def __init__(self, path: Path | None, mark: Path) -> None:
        """`path`: where the account is kept, None for a process that keeps none. `mark` is among the checkpoints;
        where it is absent, an account that is found is another training's."""
        self.path = path
        self.seconds = dict.fromkeys(CAUSES, 0.0)
        self.saved = {0: 0.0}
        self._last = self._written = time.time()
        if path is None:
            return
        if mark.exists() and path.exists():
            told = json.loads(path.read_text())
            self.seconds |= told["seconds"]
            self.saved = {int(step): useful for step, useful in told["saved"].items()}
            self.seconds["stopped"] += max(0.0, self._last - told["at"])
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def spend(self, cause: str) -> None:
        """The time since the last call went to this."""
        now = time.time()
        self.seconds[cause] += max(0.0, now - self._last)
        self._last = now
        if now - self._written > WRITE_SECONDS:
            self.write()

    def save(self, step: int) -> None:
        """A checkpoint holds the training up to this step."""
        self.spend("checkpoints")
        self.saved[step] = self.seconds["useful"]
        self.saved = dict(sorted(self.saved.items())[-KNOWN:])
        self.write()

    def back_to(self, step: int) -> None:
        """The training goes on from the checkpoint of this step."""
        useful = max((useful for saved, useful in self.saved.items() if saved <= step), default=0.0)
        self.seconds["repeated"] += self.seconds["useful"] - useful
        self.seconds["useful"] = useful
        self.saved = {saved: seconds for saved, seconds in self.saved.items() if saved <= step}

    @property
    def effective(self) -> float:
        """The share of the time that went to steps that count."""
        return self.seconds["useful"] / (sum(self.seconds.values()) or 1.0)

    def write(self) -> None:
        self._written = self._last
        if self.path:
            aside = self.path.with_suffix(".aside")
            aside.write_text(json.dumps({"at": self._last, "seconds": self.seconds, "saved": self.saved}))
            aside.replace(self.path)


def clock_file(folder: Path, stage: str) -> Path:
    """Where the account of a stage's training lies, in the folder of its log."""
    return folder / f"{stage}.clock.json"


def read_clock(folder: Path, stage: str) -> dict[str, float] | None:
    """The seconds of a stage's training by cause, None where there is no account of it."""
    path = clock_file(folder, stage)
    return json.loads(path.read_text())["seconds"] if path.exists() else None
