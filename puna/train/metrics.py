"""What a training says of itself while it runs."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from puna.log import Log
from puna.model.llama import LlamaConfig, flops_per_token
from puna.train.clock import Clock


class Meter:
    """Times the steps of this process."""

    def __init__(self, config: LlamaConfig, peak: float, log: Log, clock: Clock) -> None:
        """`peak`: FLOP/s of all processors."""
        self.config, self.peak, self.log, self.clock = config, peak, log, clock
        self._saved = self._before = time.monotonic()
        self._read = 0.0
        self.waited = 0.0
        """Seconds of waiting for rows, in all."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._read = time.monotonic() - start
        self.waited += self._read
        self.clock.spend("data")

    def unsaved(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def saved(self) -> None:
        self._saved = self._before = time.monotonic()

    def step(self, step: int, rows: int, length: int, loss: float, norm: float, lr: float, **more: float) -> str:
        """Write the figures of a step of so many rows of so many tokens that is done; the main ones in words."""
        now = time.monotonic()
        speed = rows * length / (now - self._before)
        mfu = flops_per_token(self.config, length) * speed / self.peak
        self.log.figures(
            step,
            loss=loss,
            gradient_norm=norm,
            learning_rate=lr,
            tokens_per_second=speed,
            mfu=mfu,
            data_wait=self._read / (now - self._before),
            memory_gb=memory_gb(),
            effective=self.clock.effective,
            **more,
        )
        self._before = now
        return f"loss {loss:.3f}  norm {norm:.2f}  {speed:,.0f} tokens/s  MFU {mfu:.1%}"


def memory_gb() -> float:
    """The most that this process has held: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
