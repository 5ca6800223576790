"""Quality by a reward model, difficulty by what a chat asks of its reader (section 4.2.3)."""

from collections.abc import Sequence
from math import ceil, log2
from pathlib import Path

import numpy as np

from puna.posttrain.data.sample import Dropped, Sample, answers
from puna.text.message import Chat


def difficulty(chat: Chat) -> float:
    """Turns and length, each on a scale of logarithms: 1 for one short answer, one more for each doubling of the turns
    or of 100 words. The paper asks a model for the number of intentions, and for three grades."""
    turns = sum(message.role == "user" for message in chat.messages)
    return 1 + log2(max(1, turns)) + log2(1 + len(answers(chat).split()) / 100)


def reward_scores(samples: Sequence[Sample], folder: Path) -> np.ndarray:
    """The reward model's score of every chat's last message, [samples] float64."""
    from puna.posttrain.reward_model import Scorer  # here, for it imports torch

    return np.array(Scorer.load(folder).score([sample.chat for sample in samples]))


def drop_low(samples: Sequence[Sample], scores: np.ndarray, quantile: float) -> tuple[list[Sample], list[Dropped]]:
    """The best 1 - `quantile` of the samples; each gets its `quality`, the share that scores no higher."""
    order = np.sort(scores)
    kept, dropped = [], []
    least = order[min(ceil(quantile * len(order)), len(order) - 1)] if len(order) else 0.0
    for sample, score in zip(samples, scores):
        sample.quality = round(float(np.searchsorted(order, score, side="right")) / len(order), 4)
        if score >= least:
            kept.append(sample)
        else:
            dropped.append(Dropped.of(sample, "quality", f"reward {score:.4f}, the quantile is {least:.4f}"))
    return kept, dropped
