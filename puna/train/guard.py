"""Which steps are taken: one whose loss or gradient is not finite, or is a spike, leaves the weights as they are.

After several such steps in a row training goes back to an older checkpoint and on with the text after the spike, as
PaLM's did (arXiv 2204.02311, section 5.1). The paper reports no rule of its own; the values are ours.
"""

import math

import torch
from torch import Tensor

from puna.recipe import Training

WINDOW = 64
"""A spike is one beside the median gradient norm of so many steps; before there are as many there is none."""


class Guard:
    """Judges steps by figures that all processes share, so that all come to the same verdict."""

    def __init__(self, options: Training) -> None:
        self.options = options
        self.norms = torch.zeros(WINDOW)
        self.counts = torch.zeros(4, dtype=torch.int64)

    @property
    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it, in place."""
        return {"norms": self.norms, "counts": self.counts}

    @property
    def good(self) -> int:
        return int(self.counts[0])

    @property
    def skipped(self) -> int:
        """Steps that were not taken, of the whole training."""
        return int(self.counts[1])

    @property
    def in_a_row(self) -> int:
        return int(self.counts[2])

    @property
    def rewinds(self) -> int:
        return int(self.counts[3])

    def allows(self, loss: float, norm: float) -> bool:
        """Whether this step is to be taken; remembers it."""
        usual = self.norms.median().item()
        spike = self.options.spike and self.good >= WINDOW and norm > self.options.spike * usual
        if not math.isfinite(loss + norm) or spike:
            self.counts += torch.tensor([0, 1, 1, 0])
            return False
        self.norms[self.good % WINDOW] = norm
        self.counts[0] += 1
        self.counts[2] = 0
        return True

    @property
    def exhausted(self) -> bool:
        """Whether too many steps in a row were not taken."""
        return self.in_a_row >= self.options.patience

    def rewound(self, skipped: int, rewinds: int) -> None:
        """The checkpoint that was read knew nothing of the steps after it."""
        self.counts[1:] = torch.tensor([skipped, 0, rewinds + 1])
