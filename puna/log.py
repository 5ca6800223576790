"""What a long step tells: progress on the terminal, lines of figures on disk and in TensorBoard."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from puna.errors import PunaError

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

    figures(step=..., **values) appends a line to FOLDER/STAGE.jsonl and to TensorBoard under FOLDER/tensorboard, and to
    the project `wandb` of Weights & Biases if there is one.
    These files hold times and speeds: they are no part of the artifact.
    """

    def __init__(self, folder: Path, stage: str, quiet: bool = False, wandb: str = "") -> None:
        self.folder, self.stage, self.quiet, self.wandb = folder, stage, quiet, wandb
        self._board: Any = None
        self._wandb: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, folder: Path | None = None) -> "Log":
        """The log of a part of this stage, in this folder or its own, that tells as much and to the same places."""
        return Log(folder or self.folder, name, self.quiet, self.wandb)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_board": None, "_wandb": None}

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
        if self.wandb:
            self._wandb = self._wandb or self._start_wandb()
            self._wandb.log(values, step=step)

    def _start_wandb(self) -> Any:
        """A run of Weights & Biases for this stage: the same one after a restart."""
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise PunaError('wandb is set, and the package is not there: pip install "puna[wandb]"') from None
        known = self.folder / f"{self.stage}.wandb"
        if not known.exists():
            known.write_text(uuid.uuid4().hex)
        name = f"{self.folder.resolve().parent.name} {self.stage}"
        return wandb.init(project=self.wandb, id=known.read_text(), resume="allow", name=name, dir=self.folder)

    def close(self) -> None:
        """Write to TensorBoard (and W&B) what is still held back; a later figure opens it again."""
        if self._board:
            self._board.close()
            self._board = None
        if self._wandb:
            self._wandb.finish()
            self._wandb = None
