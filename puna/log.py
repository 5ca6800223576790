"""What a long step tells: progress on the terminal, lines of figures on disk and in TensorBoard."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


class Bar:
    """A progress bar that also shows the newest figures."""

    def __init__(self, progress: Progress, task: TaskID, total: int, quiet: bool) -> None:
        self._progress, self._task, self._total, self._quiet = progress, task, total, quiet
        self._done = self._said = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=n, note=note)
        self._done += n
        tenth = self._done * 10 // max(self._total, 1)
        if (
            not (self._quiet or console.is_terminal) and tenth > self._said
        ):  # a log file gets ten lines, not ten thousand
            self._said = tenth
            task = self._progress.tasks[self._task]
            console.print(f"  {task.description}: {self._done:,} of {self._total:,}  {note}", highlight=False)


class Log:
    """Where a stage reports. It holds no open file, so it can be sent to another process.

    A quiet one tells the terminal nothing: several side by side would write over each other.

    figures(step=..., **values) appends a line to FOLDER/STAGE.jsonl and to TensorBoard under FOLDER/tensorboard.
    These files hold times and speeds: they are no part of the artifact.
    """

    def __init__(self, folder: Path, stage: str, quiet: bool = False) -> None:
        self.folder, self.stage, self.quiet = folder, stage, quiet
        self._board: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "stage": self.stage, "quiet": self.quiet, "_board": None}

    @property
    def path(self) -> Path:
        return self.folder / f"{self.stage}.jsonl"

    def message(self, text: str) -> None:
        if not self.quiet:
            console.print(f"  {text}", highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Bar]:
        with Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=self.quiet or not console.is_terminal,
        ) as progress:
            yield Bar(progress, progress.add_task(description, total=total, note=""), total, self.quiet)

    def keep_until(self, step: int) -> None:
        """Drop the lines of steps after `step`: a resumed stage writes them again."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            aside = self.path.with_suffix(".aside")
            aside.write_text("".join(kept))
            aside.replace(self.path)

    def last(self, name: str, steps: int) -> float:
        """The mean of a figure over the last few steps."""
        values = [json.loads(line)[name] for line in self.path.read_text().splitlines()[-steps:]]
        return sum(values) / len(values)

    def figures(self, step: int, **values: float) -> None:
        with self.path.open("a") as handle:
            handle.write(json.dumps({"step": step, **values}) + "\n")
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from torch.utils.tensorboard import FileWriter

        if self._board is None:
            self._board = FileWriter(str(self.folder / "tensorboard" / self.stage))
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._board.add_summary(Summary(value=points), step)  # one event: an event each took a hundredth of a step

    def close(self) -> None:
        """Write to TensorBoard what is still held back; a later figure opens it again."""
        if self._board:
            self._board.close()
            self._board = None
