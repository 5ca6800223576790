"""What a training says of itself while it runs."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from puna.log import Log
from puna.model.llama import LlamaConfig, flops_per_token
from puna.recipe import Training


class Meter:
    """Times the steps of this process."""

    def __init__(self, config: LlamaConfig, options: Training, peak: float, work: Path, log: Log) -> None:
        """`peak`: FLOP/s of all processors. `work` outlives a restart: with it time lost to failures is counted."""
        self.config, self.options, self.peak, self.log = config, options, peak, log
        self._saved = self._before = time.monotonic()
        self._read = 0.0
        self._useful = 0.0

    @contextmanager
    def reading(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._read += time.monotonic() - start

    def unsaved(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def saved(self) -> None:
        self._saved = self._before = time.monotonic()

    def step(
        self,
        step: int,
        rows: int,
        length: int,
        loss: float,
        norm: float,
        lr: float,
        skipped: int,
        **more: float,
    ) -> float:
        """Write the figures of a step of so many rows of so many tokens that is done; its tokens per second."""
        now = time.monotonic()
        speed = rows * length / (now - self._before)
        self.log.figures(
            step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=lr,
            tokens_per_second=speed,
            mfu=flops_per_token(self.config, length) * speed / self.peak,
            data_wait=self._read / (now - self._before),
            memory_gb=memory_gb(),
            skipped=skipped,
            **more,
        )
        self._before, self._read = now, 0.0
        return speed


def memory_gb() -> float:
    """The most that this process has held: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
