"""fastText classifiers: a linear model on the mean vector of words and runs of words (arXiv 1607.01759)."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from puna.corpus.quality import order_labels
from puna.errors import PunaError

PREFIX = "__label__"
# Underscores are no letters here, so that no text can spell a label. Devanagari's vowel signs are none to \w.
TOKEN = re.compile(r"(?:[^\W_]|[\u0900-\u0963])+|[^\w\s]")
CHARACTERS = 20_000  # of a text that fastText looks at
UPDATES = 25_000
VOCABULARY_SAMPLE = 1000

# With one thread, which alone is deterministic, fastText draws the first tenth of its vectors, the commonest words, and
# leaves the others as it finds the memory. So it runs in a process of its own, where malloc fills with zeros (glibc:
# with the complement of `perturb`). Vectors that begin at zero learn as soon as some others have.
TRAINER = "import json, sys, fasttext; out, options = json.loads(sys.argv[1]); "
TRAINER += "fasttext.train_supervised(**options).save_model(out)"
TRAINER_ENVIRONMENT = os.environ | {"MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.perturb=255"}


class FastText:
    """A classifier as quality.py wants it, from a .bin or .ftz file."""

    def __init__(self, path: Path) -> None:
        import fasttext

        try:
            self.model = fasttext.FastText._FastText(str(path))
            found = [str(label).removeprefix(PREFIX) for label in self.model.get_labels()]
        except (ValueError, RuntimeError) as error:
            raise PunaError(f"{path}: no fastText classifier ({error})") from error
        self.labels = order_labels(found)
        # The vocabulary of a model that was trained elsewhere tells whether its text was cut into words as ours is.
        words = [str(word) for word in self.model.get_words()[:VOCABULARY_SAMPLE]]
        self.ours = all(one_line(word) == word for word in words if word != "</s>")

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        columns = {PREFIX + label: column for column, label in enumerate(self.labels)}
        values = np.zeros((len(texts), len(columns)), np.float32)
        for row, text in enumerate(texts):
            line = one_line(text) if self.ours else " ".join(text[:CHARACTERS].split())
            for value, label in self.model.f.predict(line + "\n", len(columns), 0.0, "strict"):
                values[row, columns[label]] = value
        # its softmax is read from a table, so that rows sum to 1 only nearly
        return values / np.maximum(values.sum(1, keepdims=True), 1e-9)


def train_fasttext(
    examples: Iterable[tuple[str, str]],
    out: Path,
    *,
    epochs: int | None = None,
    learning_rate: float = 0.5,
    dim: int = 32,
    ngrams: int = 2,
    buckets: int = 1 << 18,
    min_count: int = 2,
    seed: int = 0,
) -> None:
    """Train on (label, text) pairs in their order and write a model file, the same bytes each time.

    `epochs`: passes over the examples; by default 5, or as many as make UPDATES steps of so few examples.
    `ngrams`: longest run of words that is a feature; `buckets`: how many of the runs have a vector of their own;
    `min_count`: rarer words are ignored. The paper gives none of these. PunaError for fewer than two labels.
    """
    aside = out.with_name(f"{out.name}.examples")
    labels: Counter[str] = Counter()
    try:
        with aside.open("w", encoding="utf-8") as handle:
            for label, text in examples:
                if label.split() != [label]:
                    raise PunaError(f"{label!r} cannot be a label: fastText's labels are single words")
                labels[label] += 1
                handle.write(f"{PREFIX}{label} {one_line(text)}\n")
        if len(labels) < 2:
            raise PunaError(f"a classifier needs examples of two labels at least, not of {sorted(labels)}")
        options = {
            "input": str(aside), "epoch": epochs or max(5, UPDATES // labels.total()), "lr": learning_rate, "dim": dim,
            "wordNgrams": ngrams, "bucket": buckets if ngrams > 1 else 0, "minCount": min_count, "seed": seed + 1,
            "thread": 1, "verbose": 0,
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
