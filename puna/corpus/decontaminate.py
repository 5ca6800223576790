"""Takes evaluation examples out of the corpus, and tells how much of them it holds (section 5.1.4).

The paper calls an example contaminated if a share T_D of its tokens lies in 8-grams that the corpus holds. The same
measure, taken between an example and a single document, decides here what is removed: the document, or the lines of it
that hold the example. Words are those of shingles.py: no case, no punctuation.

The index is a folder of arrays that every process maps into memory:

    grams.npy     [n] uint64, sorted: the n-grams of all examples, each once
    table.npy     [2^bits] bool: whether any of them begins with these bits, which spares most documents the search
    starts.npy    [n + 1] int64: where the places of each n-gram lie in
    places.npy    [m] int64: numbers of words, counted through all examples, at which the n-gram begins
    examples.npy  [examples + 1] int64: number of the first word of each example
    sets.json     names and first examples of the sets, n
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from puna.corpus.records import read_records
from puna.corpus.shingles import hash_ngrams, hash_words, hash_words_of
from puna.errors import PunaError
from puna.recipe import Corpus

ARRAYS = ("grams", "table", "starts", "places", "examples")
MOST_BITS = 28
SHARES = (0.2, 0.4, 0.6, 0.8)
"""T_D, the paper's threshold, is chosen for each set by its effect on the score; the report gives these."""


@dataclass(frozen=True)
class Index:
    grams: np.ndarray
    table: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    examples: np.ndarray
    sets: dict[str, int]
    """Name of each set and the number of its first example."""
    n: int

    def find(self, grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `grams` [k] are in the index: [k] bool, and the numbers [found] they have there."""
        found = self.table[grams >> np.uint64(65 - len(self.table).bit_length())]
        numbers = np.searchsorted(self.grams, grams[found])
        numbers[numbers == len(self.grams)] = 0
        same = self.grams[numbers] == grams[found]
        found[found] = same
        return found, numbers[same]

    def places_of(self, numbers: np.ndarray) -> np.ndarray:
        """[m] int64: every place in the examples at which one of the n-grams begins."""
        return self.places[_ranges(self.starts[numbers], self.starts[numbers + 1])]

    def shares(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples that have any of the n-grams, and the share of each one's words that lies in them."""
        places = self.places_of(numbers)
        words = np.unique((places[:, None] + np.arange(self.n)).ravel())
        touched, counts = np.unique(np.searchsorted(self.examples, words, "right") - 1, return_counts=True)
        return touched, counts / (self.examples[touched + 1] - self.examples[touched])

    def set_of(self, example: int) -> str:
        return next(name for name, first in reversed(self.sets.items()) if first <= example)


@dataclass(frozen=True)
class Overlap:
    """A document that holds evaluation examples."""

    text: str | None
    """What is left of it; None where nothing is to be kept."""
    detail: str
    """The set, the example (counted from 0) and the share of its words."""


class Checker:
    """Looks through documents, one after the other, and remembers which n-grams of the examples came by."""

    def __init__(self, index: Index, knobs: Corpus) -> None:
        self.index, self.knobs = index, knobs
        self._before = np.zeros(len(index.grams), bool)
        self._after = np.zeros(len(index.grams), bool)

    def __call__(self, text: str) -> Overlap | None:
        """None for a document that holds no example up to the threshold."""
        numbers, held, shares = self._examine(text)
        self._before[numbers] = True
        if not len(held):
            self._after[numbers] = True
            return None
        worst = int(shares.argmax())
        example, name = int(held[worst]), self.index.set_of(int(held[worst]))
        detail = f"{name} {example - self.index.sets[name]} {shares[worst]:.2f}"
        left = None
        if self.knobs.contamination_removes == "passage":
            left = self._without(text, held)
            numbers, held, _ = self._examine(left)
            if len(held) or not left.strip():
                left = None
            else:
                self._after[numbers] = True
        return Overlap(left, detail)

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the n-grams that came by, int64: in all documents, and in what is left of them."""
        return np.flatnonzero(self._before), np.flatnonzero(self._after)

    def _examine(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the n-grams in a text, the examples that it holds up to the threshold, and their shares."""
        _, numbers = self.index.find(text_grams(text, self.index.n))
        if not len(numbers):
            return numbers, numbers, np.zeros(0)
        numbers = np.unique(numbers)
        touched, shares = self.index.shares(numbers)
        held = shares >= self.knobs.contamination_threshold
        return numbers, touched[held], shares[held]

    def _without(self, text: str, held: np.ndarray) -> str:
        """The text without the lines that hold an n-gram of the examples `held`."""
        lines, n = text.split("\n"), self.index.n
        words, counts = hash_words_of(lines)
        found, numbers = self.index.find(hash_ngrams(words, n))
        line_of_word = np.repeat(np.arange(len(lines)), counts)
        dropped: set[int] = set()
        for start, number in zip(np.flatnonzero(found), numbers):
            owners = np.searchsorted(self.index.examples, self.index.places_of(np.array([number])), "right") - 1
            if np.isin(owners, held).any():
                dropped.update(range(line_of_word[start], line_of_word[start + n - 1] + 1))
        return "\n".join(line for number, line in enumerate(lines) if number not in dropped)


def text_grams(text: str, n: int) -> np.ndarray:
    """[words - n + 1] uint64: every run of n words; none in a shorter text."""
    words = hash_words(text)
    return hash_ngrams(words, n) if len(words) >= n else words[:0]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """arange(start, end) of every pair, one after the other."""
    lengths = ends - starts
    firsts = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    return firsts + np.arange(lengths.sum())


# -- the index ---------------------------------------------------------------------------------------------------------


def build_index(knobs: Corpus, folder: Path) -> Path | None:
    """Make the index of `knobs.evaluation_sets` in `folder`, unless it is there; None where there are no sets.

    In memory: about 30 bytes for each word of the examples. PunaError names a set that cannot be read.
    """
    if not knobs.evaluation_sets:
        return None
    if (folder / "sets.json").exists():  # written last
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    n = knobs.contamination_ngram
    sets: dict[str, int] = {}
    examples, grams, places = [0], [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for spec in knobs.evaluation_sets:
        sets[_name(spec, sets)] = len(examples) - 1
        for text in read_examples(spec):
            words = hash_words(text)
            if len(words) >= n:
                grams.append(hash_ngrams(words, n))
                places.append(examples[-1] + np.arange(len(grams[-1])))
            examples.append(examples[-1] + len(words))
    unique, inverse = np.unique(np.concatenate(grams), return_inverse=True)
    bits = min(MOST_BITS, len(unique).bit_length() + 3)
    table = np.zeros(1 << bits, bool)
    table[unique >> np.uint64(64 - bits)] = True
    order = np.argsort(inverse, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(inverse, minlength=len(unique)))])
    for name, array in (
        ("grams", unique),
        ("table", table),
        ("starts", starts.astype(np.int64)),
        ("places", np.concatenate(places)[order]),
        ("examples", np.array(examples, np.int64)),
    ):
        np.save(folder / f"{name}.npy", array)
    aside = folder / "sets.aside"
    aside.write_text(json.dumps({"sets": sets, "n": n}) + "\n", encoding="utf-8")
    aside.rename(folder / "sets.json")
    return folder


@cache
def load_index(folder: Path) -> Index:
    """The index that build_index made, its arrays mapped into memory."""
    about = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
    arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS]
    return Index(*arrays, sets=about["sets"], n=about["n"])


def read_examples(spec: str) -> Iterator[str]:
    """The text of each example of `PATH#FIELD,FIELD`, or of `PATH` with all of its strings, also those in lists."""
    path, _, named = spec.partition("#")
    for number, record in enumerate(read_records(path), 1):
        if absent := [name for name in named.split(",") if name and name not in record]:
            raise PunaError(f"corpus.evaluation_sets: record {number} of {path} has no field {absent[0]!r}")
        values = [record[name] for name in named.split(",")] if named else list(record.values())
        yield "\n".join(_strings(values))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _name(spec: str, taken: Iterable[str]) -> str:
    """The name of a set's file without its suffixes; its whole path where another set has that name."""
    path = spec.partition("#")[0]
    name = Path(path).name.partition(".")[0]
    return path if name in taken else name


# -- the report --------------------------------------------------------------------------------------------------------


def report(
    index: Index, before: Iterable[np.ndarray], after: Iterable[np.ndarray], knobs: Corpus
) -> dict[str, dict[str, Any]]:
    """For each set, the share of its examples that the whole corpus contaminates, by the paper's measure.

    `before` and `after`: what Checker.seen() gave for each shard. `too_short` examples have fewer words than an n-gram
    and count as clean. `before` and `after` in the result are shares at `contamination_threshold`, `at` at others.
    """
    shares = [_covered(index, numbers) for numbers in (before, after)]
    sets = {}
    ends = [*list(index.sets.values())[1:], len(index.examples) - 1]
    for (name, first), end in zip(index.sets.items(), ends):
        words = np.diff(index.examples[first : end + 1])
        sets[name] = {"examples": end - first, "too_short": int((words < index.n).sum())}
        for when, share in zip(("before", "after"), shares):
            sets[name][when] = _contaminated(share[first:end], knobs.contamination_threshold)
        sets[name]["at"] = {str(at): [_contaminated(share[first:end], at) for share in shares] for at in SHARES}
    return sets


def _covered(index: Index, shards: Iterable[np.ndarray]) -> np.ndarray:
    """[examples]: the share of each example's words that lies in n-grams which any of the shards has seen."""
    seen = np.zeros(len(index.grams), bool)
    for numbers in shards:
        seen[numbers] = True
    edges = np.zeros(int(index.examples[-1]) + index.n + 1, np.int32)  # +1 where an n-gram begins, -1 after its end
    places = index.places_of(np.flatnonzero(seen))
    np.add.at(edges, places, 1)
    np.add.at(edges, places + index.n, -1)
    covered = np.concatenate([[0], np.cumsum(np.cumsum(edges) > 0)])
    counts = covered[index.examples[1:]] - covered[index.examples[:-1]]
    return counts / np.maximum(1, np.diff(index.examples))


def _contaminated(shares: np.ndarray, threshold: float) -> float:
    return round(float((shares >= threshold).mean()), 4) if len(shares) else 0.0
