"""The passes over a page that cost most, in Python or, the same, compiled (native/native.c)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from puna.corpus.extract import features, layers, markup
from puna.corpus.extract.blocks import MAX_DEPTH, Block, UnusablePageError, read_blocks
from puna.corpus.extract.formulas import drawn_formula, essence, formula
from puna.corpus.extract.markup import Markup

try:
    from puna.corpus.extract.native import _native  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # it was not built at installation: no compiler
    _native: Any = None

VERSION = 4
"""Of the compiled passes that do the same as the Python ones here."""
LANES = 16
"""Columns that the compiled layers compute together."""
MAX_WORDS = 256
"""Bits of the hints for which the compiled passes have room."""
KINDS = {  # bits of a tag, as in native/tags.h
    1: markup.INLINE, 2: markup.VOID, 4: markup.SKIPPED, 8: markup.GROUPS, 16: ("tr",), 32: ("td", "th"), 64: ("a",),
    128: ("pre",), 256: markup.FORMULAS, 512: ("img",), 1024: ("hr",), 2048: ("br",),
}  # fmt: skip
CLASSES = {1: markup.SKIPPED_CLASSES, 2: markup.MATHJAX_CLASSES, 4: markup.PREFORMATTED_CLASSES}


@dataclass(frozen=True)
class Passes:
    """In Python: what the compiled ones are compared with, and what works everywhere."""

    markup: Markup
    openings: dict[str, int]
    """Words that blocks begin with, and their bits."""

    def unclosed(self, html: str, least: int) -> list[int]:
        return markup.unclosed(html, least)

    def head_and_body(self, html: str) -> tuple[str, str | bytes]:
        return markup.head_and_body(html)

    def read_blocks(self, body: Any) -> tuple[list[Block], np.ndarray]:
        return read_blocks(body, self.markup)

    def measure(self, blocks: list[Block], title: str) -> tuple[np.ndarray, np.ndarray]:
        return features.measure(blocks, title, self.openings)

    def enclosing(self, containers: np.ndarray) -> np.ndarray:
        return features.enclosing(containers)

    def alike(self, blocks: list[Block], containers: np.ndarray) -> np.ndarray:
        return features.alike(blocks, containers)

    def numbers(self, rows: np.ndarray, kin: np.ndarray, containers: np.ndarray, levels: np.ndarray) -> np.ndarray:
        return features.numbers(rows, kin, containers, levels)

    def forward(
        self, weights: layers.Layers, inputs: np.ndarray, blocks: list[Block], openings: np.ndarray
    ) -> np.ndarray:
        return layers.forward(weights, inputs, blocks, openings)


@dataclass(frozen=True)
class CompiledPasses(Passes):
    tables: Any
    """What the compiled passes look names and words up in."""

    def unclosed(self, html: str, least: int) -> list[int]:
        return _native.unclosed(html, list(markup.FORMATTING), least)

    def head_and_body(self, html: str) -> tuple[str, str | bytes]:
        return _native.head_and_body(html)

    def read_blocks(self, body: Any) -> tuple[list[Block], np.ndarray]:
        found = _native.read_blocks(self.tables, body)
        if found is None:
            raise UnusablePageError(f"more than {MAX_DEPTH:,} elements in each other")
        blocks, containers = found
        return blocks, np.frombuffer(containers, np.int32).reshape(-1, 3)

    def measure(self, blocks: list[Block], title: str) -> tuple[np.ndarray, np.ndarray]:
        rows, bits = _native.measure_blocks(self.tables, blocks, title.lower())
        openings = np.frombuffer(bits, np.uint8).reshape(len(blocks), -1)
        return np.frombuffer(rows, np.int32).reshape(len(blocks), -1), openings

    def enclosing(self, containers: np.ndarray) -> np.ndarray:
        return np.frombuffer(_native.enclosing(containers.tobytes()), np.int32).reshape(-1, features.LEVELS)

    def alike(self, blocks: list[Block], containers: np.ndarray) -> np.ndarray:
        return np.frombuffer(_native.alike(blocks, containers.tobytes()), np.int32).reshape(len(blocks), -1)

    def numbers(self, rows: np.ndarray, kin: np.ndarray, containers: np.ndarray, levels: np.ndarray) -> np.ndarray:
        found = _native.numbers(*(np.ascontiguousarray(each, np.int32) for each in (rows, kin, containers, levels)))
        return np.frombuffer(found, np.float32).reshape(len(rows), -1)

    def forward(
        self, weights: layers.Layers, inputs: np.ndarray, blocks: list[Block], openings: np.ndarray
    ) -> np.ndarray:
        depth, _, _, width = weights["conv"].shape
        if width % LANES:
            return super().forward(weights, inputs, blocks, openings)
        sizes = width, len(weights["hints"]), len(weights["openings"]), depth
        return np.frombuffer(_native.forward(weights, inputs, blocks, openings, *sizes), np.float32)


def make_passes(words: Markup, openings: dict[str, int]) -> Passes:
    """The compiled ones, if they were built and have room."""
    if getattr(_native, "VERSION", None) != VERSION or len(words.vocabulary) > MAX_WORDS or not openings:
        return Passes(words, openings)
    tags = dict.fromkeys((word[1:] for word in words.vocabulary if word[0] == "<"), 0)
    for bit, names in KINDS.items():
        for name in names:
            tags[name] = tags.get(name, 0) | bit
    numbers = {name: flags + 4096 * (words.vocabulary.get("<" + name, -1) + 1) for name, flags in tags.items()}
    classes = {name: bit for bit, names in CLASSES.items() for name in names}
    tables = _native.make_tables(
        numbers, dict(words.vocabulary), classes, openings, Block, drawn_formula, formula, essence
    )
    return CompiledPasses(words, openings, tables)
