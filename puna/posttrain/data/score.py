"""Quality by a reward model or by a judge, difficulty by what a chat asks of its reader (section 4.2.3)."""

from collections.abc import Sequence
from math import ceil, log2
from pathlib import Path

import numpy as np

from puna.posttrain.data.judge import Grade
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


def drop_low(
    samples: Sequence[Sample],
    scores: np.ndarray | None,
    quantile: float,
    grades: Sequence[Grade | None] | None = None,
) -> tuple[list[Sample], list[Dropped]]:
    """The samples that a reward model's `scores` put into their best 1 - `quantile`, or a judge's grades at the top.

    The two disagree much, the paper finds, and both together find most of what is good. Each sample gets its `quality`,
    the share that scores no higher or the share of its points, whichever is more.
    """
    kept, dropped = [], []
    order = np.sort(scores) if scores is not None else np.empty(0)
    least = order[min(ceil(quantile * len(order)), len(order) - 1)] if len(order) else 0.0
    for number, sample in enumerate(samples):
        good, shares, details = False, [0.0], []
        if scores is not None:
            good = bool(scores[number] >= least)
            shares.append(float(np.searchsorted(order, scores[number], side="right")) / len(order))
            details.append(f"reward {scores[number]:.4f}, the quantile is {least:.4f}")
        if grades is not None:
            grade = grades[number]
            good = good or (grade is not None and grade.points == grade.most)
            shares.append(grade.points / grade.most if grade else 0.0)
            details.append(f"judge {grade.points} of {grade.most}" if grade else "the judge gave no grades")
        sample.quality = round(max(shares), 4)
        if good:
            kept.append(sample)
        else:
            dropped.append(Dropped.of(sample, "quality", "; ".join(details)))
    return kept, dropped
