"""Examples to train classifiers on, and how well a classifier agrees with labels."""

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from puna.corpus.quality import label_number, load_classifier, order_labels, score
from puna.corpus.records import list_files, read_texts
from puna.errors import PunaError


def quality_examples(positives: str | Path, negatives: str | Path, limit: int, seed: int) -> list[tuple[str, str]]:
    """As many texts of label `1` as of label `0`, at most `limit` of each, shuffled.

    `positives`: pages that should be kept, in the paper those that Wikipedia references; `negatives`: the corpus at
    hand, a folder or file of records with `text`. A text that is in both is positive.
    """
    good = sample(read_texts(positives), limit, seed)
    known = set(good)
    bad = sample((text for text in read_texts(negatives) if text not in known), limit, seed)
    count = min(len(good), len(bad))
    if not count:
        empty = positives if not good else negatives
        raise PunaError(f"{empty}: holds no text to learn from ({len(list_files(empty))} files)")
    pairs = [("1", text) for text in good[:count]] + [("0", text) for text in bad[:count]]
    return sorted(pairs, key=lambda pair: _draw(pair[1], ~seed & 0xFFFFFFFF))


def sample(texts: Iterable[str], limit: int, seed: int) -> list[str]:
    """`limit` texts without copies, in an order that their content and the seed decide; only these are in memory."""
    chosen: list[tuple[int, str]] = []  # a heap of the smallest draws, the largest first
    held: set[int] = set()
    for text in texts:
        if not text or text.isspace():
            continue
        draw = _draw(text, seed)
        if draw in held or (len(chosen) == limit and -draw <= chosen[0][0]):
            continue
        held.add(draw)
        if len(chosen) < limit:
            heapq.heappush(chosen, (-draw, text))
        else:
            held.discard(-heapq.heappushpop(chosen, (-draw, text))[0])
    return [text for _, text in sorted(chosen, reverse=True)]


def _draw(text: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"), seed)


# -- how good a classifier is ------------------------------------------------------------------------------------------


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, half for a tie: scores [n], positive [n] bool.

    ValueError where one of the two classes is empty.
    """
    if not 0 < positive.sum() < len(positive):
        raise ValueError(
            f"the area under the curve needs both classes, not {positive.sum()} positives of {len(positive)}"
        )
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of each value, from 1
    good = int(positive.sum())
    return float((ranks[inverse][positive].sum() - good * (good + 1) / 2) / (good * (len(positive) - good)))


def precision_recall(scores: np.ndarray, positive: np.ndarray, threshold: float) -> tuple[float, float]:
    """Of the texts with at least this score, the share that is positive; and the share of the positives found."""
    found = scores >= threshold
    hits = int((found & positive).sum())
    return hits / max(1, int(found.sum())), hits / max(1, int(positive.sum()))


def evaluate(model: str, examples: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A classifier beside (label, text) pairs.

    A model with a score and two labels in the pairs, the higher one positive: `auc` and `thresholds`, rows of
    (threshold, precision, recall). Otherwise `accuracy` and `labels`, rows of (label, examples, precision, recall).
    """
    given, texts = [label for label, _ in examples], [text for _, text in examples]
    path, _, label = model.partition("#")
    names = order_labels({*given})
    positive = np.array([one == (label or names[-1]) for one in given])
    scored = len(names) == 2 and all(label_number(name) is not None for name in load_classifier(path).labels)
    if label or scored:
        scores = score(model, texts)
        rows = [(at, *precision_recall(scores, positive, at)) for at in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
        auc = area_under_curve(scores, positive) if 0 < positive.sum() < len(positive) else float("nan")
        return {"examples": len(examples), "auc": auc, "thresholds": rows}
    classifier = load_classifier(path)
    said = [classifier.labels[best] for best in classifier.probabilities(texts).argmax(1)]
    rows = []
    for name in order_labels({*given, *said}):
        right = sum(one == other == name for one, other in zip(said, given))
        rows.append((name, given.count(name), right / max(1, said.count(name)), right / max(1, given.count(name))))
    accuracy = sum(one == other for one, other in zip(said, given)) / max(1, len(given))
    return {"examples": len(examples), "accuracy": accuracy, "labels": rows}
