"""Profiles on demand: a trace of some steps for Chrome's or Perfetto's viewer, and a table of the dearest operators."""

import torch
from torch.profiler import ProfilerActivity, profile

from puna.log import Log

ASK = "profile-now"
"""The name of a file in the log's folder: whoever makes it gets a profile of the next steps."""
STEPS = 3
RANKS = 8
"""The first so many processes write one: those of one machine."""


class Profiler:
    """Traces the steps of a training that the knob names, or that a file asks for."""

    def __init__(self, log: Log, rank: int, steps: tuple[int, int] | None) -> None:
        """`steps`: the first and the last, the training's first being 1."""
        self.log, self.rank, self.steps = log, rank, steps
        self._profile: profile | None = None

    def asked(self) -> bool:
        """Whether somebody asks for one now; says so once."""
        try:
            (self.log.folder / ASK).unlink()
        except FileNotFoundError:
            return False
        return True

    def begin(self, step: int) -> None:
        """To be called before each step."""
        if self.steps and self._profile is None and self.rank < RANKS and self.steps[0] <= step <= self.steps[1]:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu])
            self._profile.__enter__()

    def end(self, step: int, asked: bool) -> None:
        """To be called after it, in all processes with the same wish."""
        if self.steps and step >= self.steps[1]:
            self.close()
        if asked and self._profile is None:
            self.steps = (step + 1, step + STEPS)

    def close(self) -> None:
        """Write what was traced, if anything was."""
        if self._profile is None or self.steps is None:
            return
        found, self._profile = self._profile, None
        found.__exit__(None, None, None)
        folder = self.log.folder / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.log.stage}-steps-{self.steps[0]}-{self.steps[1]}-rank-{self.rank}"
        found.export_chrome_trace(str(folder / f"{name}.json.gz"))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=60)
        (folder / f"{name}.txt").write_text(table + "\n")
        self.steps = None
        if self.rank == 0:
            self.log.message(f"profile of steps in {folder / name}.json.gz, the dearest operators in {name}.txt")
