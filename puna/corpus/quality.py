"""Classifiers of documents: whether a text is good, what it is about, which part of the mix it is of (3.1.1, 3.1.2).

Two kinds, used alike: fastText (linear.py) and a small transformer (scorer.py). The paper asks fastText whether
Wikipedia would reference a text, and distils the judgement of a chat model into a transformer of DistilRoBERTa's size.

A model of quality has numbers for labels, `0` and `1` or a scale such as `0` to `5`; its score is the mean label,
scaled to 0 to 1. A foreign model may have any labels: `PATH#LABEL` takes the probability of one of them.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from puna.errors import PunaError
from puna.recipe import Corpus


class Classifier(Protocol):
    labels: list[str]
    """In order: numbers by value, names by the alphabet."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, labels] float32; each row depends on its own text alone and sums to 1."""
        ...


@dataclass
class Judgement:
    """What the classifiers say of a document. With a `reason` it is dropped, at step `quality`."""

    quality: float | None = None
    """The lowest score that a quality model gave, 0 to 1; None where none judges this language."""
    topic: str = ""
    part: str | None = None
    """None leaves it to the rules of parts.py."""
    reason: str | None = None
    detail: str = ""


def judge(texts: Sequence[str], languages: Sequence[str], knobs: Corpus) -> list[Judgement]:
    """Every classifier that the knobs name, on every text. Models are loaded once in a process."""
    judgements = [Judgement() for _ in texts]
    judged = [place for place, language in enumerate(languages) if language in knobs.quality_languages]
    for name, lowest in knobs.quality_models.items():
        for place, value in zip(judged, score(name, [texts[place] for place in judged]).tolist()):
            judgement = judgements[place]
            judgement.quality = value if judgement.quality is None else min(value, judgement.quality)
            if value < lowest and not judgement.reason:
                judgement.reason, judgement.detail = "low-quality", f"{Path(name).name} {value:.3f}"
    alive = [place for place, judgement in enumerate(judgements) if not judgement.reason]
    left = [texts[place] for place in alive]
    for place, topic in zip(alive, _topics(left, knobs)):
        judgements[place].topic = topic
    for place, part in zip(alive, _parts(left, knobs)):
        judgements[place].part = part
    return judgements


def _topics(texts: Sequence[str], knobs: Corpus) -> list[str]:
    if not knobs.topic_model or not texts:
        return [""] * len(texts)
    model = load_classifier(knobs.topic_model)
    return [model.labels[best] for best in model.probabilities(texts).argmax(1)]


def _parts(texts: Sequence[str], knobs: Corpus) -> list[str | None]:
    """The part whose model is surest; `general` needs both models to say no."""
    if not knobs.part_models or not texts:
        return [None] * len(texts)
    parts = sorted(knobs.part_models)
    scores = np.stack([score(knobs.part_models[part], texts) for part in parts])  # [parts, texts]
    otherwise = "general" if len(parts) == 2 else None
    return [
        parts[best] if value >= knobs.part_threshold else otherwise
        for best, value in zip(scores.argmax(0), scores.max(0))
    ]


def score(model: str, texts: Sequence[str]) -> np.ndarray:
    """[texts] float32, 0 to 1: the mean label of a model with numbers for labels, or of `PATH#LABEL` that label."""
    path, _, label = model.partition("#")
    classifier = load_classifier(path)
    if label:
        if label not in classifier.labels:
            raise PunaError(f"{path} has no label {label!r}; it has {', '.join(classifier.labels)}")
        values = np.array([name == label for name in classifier.labels], np.float32)
    else:
        numbers = [label_number(name) for name in classifier.labels]
        if None in numbers or len(numbers) < 2:
            named = ", ".join(classifier.labels)
            raise PunaError(f"{path} has the labels {named}, which are no numbers; name the good one: {path}#LABEL")
        scale = np.array(numbers, np.float32)
        values = (scale - scale[0]) / (scale[-1] - scale[0])
    if not len(texts):
        return np.zeros(0, np.float32)
    return classifier.probabilities(texts) @ values


@cache
def load_classifier(path: str) -> Classifier:
    """A fastText model (a file) or a transformer (a directory, scorer.py); PunaError where it is neither."""
    if Path(path).is_dir():
        from puna.corpus.scorer import Scorer  # torch is loaded only for this

        return Scorer.load(Path(path))
    from puna.corpus.linear import FastText

    return FastText(Path(path))


def outside_digest(knobs: Corpus) -> str:
    """Changes with the content of every model and evaluation set that the knobs name."""
    names = [*knobs.quality_models, knobs.topic_model or "", *knobs.part_models.values(), *knobs.evaluation_sets]
    digest = hashlib.sha256()
    for path in sorted({name.partition("#")[0] for name in names if name}):
        digest.update(f"{path}\0".encode())
        if "://" in path:  # its name must do
            continue
        files = sorted(p for p in Path(path).rglob("*") if p.is_file()) if Path(path).is_dir() else [Path(path)]
        for file in files:
            if not file.is_file():
                raise PunaError(f"{path}: no such file or folder")
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def order_labels(labels: Iterable[str]) -> list[str]:
    """Numbers by value, then names by the alphabet."""
    return sorted(labels, key=lambda label: (label_number(label) is None, label_number(label) or 0.0, label))


def label_number(label: str) -> float | None:
    """The value of a label that is a number, else None."""
    return float(label) if re.fullmatch(r"-?\d+(\.\d+)?", label) else None
