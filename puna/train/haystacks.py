"""Training rows that must be read from end to end: some rows of the shards become haystacks with needles."""

from collections.abc import Sequence

import numpy as np
import torch

from puna.text.needle import NeedleMaker
from puna.train.batches import IGNORE, Batch, Batches, rng

REPEATS = 8
"""Times that a row asks for each of its needles. Many answers in a row are what a tiny model learns from, as in MQAR
((arXiv 2312.04927); with one or two it had not learnt the task after four million tokens."""


class Haystacks:
    """Rows of `batches`, of which about a `share` are made into haystacks, each of its own text as one document.

    Which rows and where their needles lie depends on the seed and the row's number, so the row number stays the whole
    state of the loader. A row gets any number of needles from one to the most that leave, with the questions, a quarter
    of it to text: of long rows a model sees but a few. Only the answers are learnt: of a row of 12,288 tokens they are
    a fiftieth, and beside the loss of all its text they taught a tiny model little.
    """

    def __init__(self, batches: Batches, needles: NeedleMaker, share: float, seed: int) -> None:
        self.batches, self.needles, self.share, self.seed = batches, needles, share, seed
        self.sources = (*getattr(batches, "sources", ()), "needles")

    def __len__(self) -> int:
        return len(self.batches)

    def rows(self, numbers: Sequence[int]) -> Batch:
        batch = self.batches.rows(numbers)
        for place, number in enumerate(numbers):
            random = rng(self.seed, "haystack", number)
            if random.random() < self.share:
                self._bury(batch, place, random)
        return batch

    def _bury(self, batch: Batch, place: int, random: np.random.Generator) -> None:
        row = batch.tokens[place].numpy()
        length = len(row) + 1  # the last label is a token, too
        fit = 3 * length // (4 * (self.needles.needle_tokens + 2 * REPEATS))
        most = max(1, min(fit, self.needles.most))
        made = self.needles.make(row, length, random.random(random.integers(1, most + 1)), random, REPEATS)
        batch.tokens[place] = torch.from_numpy(made.tokens[:-1])
        batch.labels[place] = IGNORE
        batch.labels[place, made.answers - 1] = torch.from_numpy(made.tokens[made.answers])
        batch.documents[place] = 0
        if batch.sources is not None:
            batch.sources[place] = len(self.sources) - 1
