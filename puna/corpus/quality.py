"""Classifiers of documents: whether a text is good, what it is about, which part of the mix it is of (3.1.1, 3.1.2).

Two kinds, used alike: fastText (this file) and a small transformer (scorer.py). The paper asks fastText whether
Wikipedia would reference a text, and distils the judgement of a chat model into a transformer of DistilRoBERTa's size.

A model of quality has numbers for labels, `0` and `1` or a scale such as `0` to `5`; its score is the mean label,
scaled to 0 to 1. A foreign model may have any labels: `PATH#LABEL` takes the probability of one of them.
"""

import hashlib
import heapq
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from puna.corpus.records import list_files, read_texts
from puna.errors import PunaError
from puna.recipe import Corpus

PREFIX = "__label__"
# Underscores are no letters here, so that no text can spell a label. Devanagari's vowel signs are none to \w.
TOKEN = re.compile(r"(?:[^\W_]|[\u0900-\u0963])+|[^\w\s]")
CHARACTERS = 20_000  # of a text that fastText looks at

# With one thread, which alone is deterministic, fastText draws the first tenth of its vectors, the commonest words, and
# leaves the others as it finds the memory. Only in pages fresh from the system is that zero: hence a process of its
# own, whose allocator takes every array from there. (Vectors that begin at zero learn as soon as some others have.)
TRAINER = "import json, sys, fasttext; out, options = json.loads(sys.argv[1]); "
TRAINER += "fasttext.train_supervised(**options).save_model(out)"
TRAINER_ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {
    "MALLOC_MMAP_THRESHOLD_": "4096"
}


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
        numbers = [_number(name) for name in classifier.labels]
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


# -- fastText ----------------------------------------------------------------------------------------------------------


class FastText:
    """A linear model on the mean vector of words and word pairs (arXiv 1607.01759)."""

    def __init__(self, path: Path) -> None:
        import fasttext

        try:
            self.model = fasttext.FastText._FastText(str(path))
            found = [str(label).removeprefix(PREFIX) for label in self.model.get_labels()]
        except (ValueError, RuntimeError) as error:
            raise PunaError(f"{path}: no fastText classifier ({error})") from error
        self.labels = order_labels(found)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        columns = {PREFIX + label: column for column, label in enumerate(self.labels)}
        values = np.zeros((len(texts), len(columns)), np.float32)
        for row, text in enumerate(texts):
            for value, label in self.model.f.predict(one_line(text) + "\n", len(columns), 0.0, "strict"):
                values[row, columns[label]] = value
        # its softmax is read from a table, so that rows sum to 1 only nearly
        return values / np.maximum(values.sum(1, keepdims=True), 1e-9)


def train_fasttext(
    examples: Iterable[tuple[str, str]],
    out: Path,
    *,
    epochs: int = 10,
    learning_rate: float = 0.5,
    dim: int = 32,
    ngrams: int = 2,
    buckets: int = 1 << 18,
    min_count: int = 2,
    seed: int = 0,
) -> None:
    """Train on (label, text) pairs in their order and write a model file, the same bytes each time.

    `ngrams`: longest run of words that is a feature; `buckets`: how many of the runs have a vector of their own;
    `min_count`: rarer words are ignored. The paper gives none of these. PunaError for fewer than two labels.
    """
    aside = out.with_name(f"{out.name}.examples")
    labels: set[str] = set()
    with aside.open("w", encoding="utf-8") as handle:
        for label, text in examples:
            if not label or label.split() != [label]:
                raise PunaError(f"{label!r} cannot be a label: fastText's labels are single words")
            labels.add(label)
            handle.write(f"{PREFIX}{label} {one_line(text)}\n")
    try:
        if len(labels) < 2:
            raise PunaError(f"a classifier needs examples of two labels at least, not of {sorted(labels)}")
        options = {
            "input": str(aside), "epoch": epochs, "lr": learning_rate, "dim": dim, "wordNgrams": ngrams,
            "bucket": buckets if ngrams > 1 else 0, "minCount": min_count, "seed": seed + 1, "thread": 1, "verbose": 0,
        }  # fmt: skip
        command = [sys.executable, "-P", "-c", TRAINER, json.dumps([str(out), options])]
        done = subprocess.run(command, env=TRAINER_ENVIRONMENT, capture_output=True, text=True)
        if done.returncode:
            raise PunaError(f"fastText could not be trained: {done.stderr.strip().splitlines()[-1]}")
    finally:
        aside.unlink()


def one_line(text: str) -> str:
    """Words and punctuation marks in lower case, one space between them."""
    return " ".join(TOKEN.findall(text[:CHARACTERS].lower()))


def order_labels(labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=lambda label: (_number(label) is None, _number(label) or 0.0, label))


def _number(label: str) -> float | None:
    return float(label) if re.fullmatch(r"-?\d+(\.\d+)?", label) else None


# -- examples ----------------------------------------------------------------------------------------------------------


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
    for text in _not_empty(texts):
        draw = _draw(text, seed)
        if draw in held or (len(chosen) == limit and -draw <= chosen[0][0]):
            continue
        held.add(draw)
        if len(chosen) < limit:
            heapq.heappush(chosen, (-draw, text))
        else:
            held.discard(-heapq.heappushpop(chosen, (-draw, text))[0])
    return [text for _, text in sorted(chosen, reverse=True)]


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    return (text for text in texts if text and not text.isspace())


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
