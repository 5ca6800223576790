"""Preferences: answers to one prompt that were ranked, as token ids (section 4.2.1)."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from puna.errors import PunaError
from puna.posttrain.chats import read_jsonl

STRENGTHS = ("significantly better", "better", "slightly better", "marginally better")
"""How much better the chosen answer is than the rejected one, in the paper's words."""
DECISIVE = STRENGTHS[:2]
"""What the reward model and DPO learn from (sections 4.1.2 and 4.1.4)."""


class Pair(NamedTuple):
    """Two answers to one prompt, and perhaps the chosen one as a person, or a program, mended it."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    edited: list[int] | None = None
    strength: str = STRENGTHS[0]

    @property
    def ranked(self) -> list[list[int]]:
        """The answers, best first: edited > chosen > rejected."""
        return [answer for answer in (self.edited, self.chosen, self.rejected) if answer is not None]


def read_pairs(*paths: Path) -> list[Pair]:
    """The decisive pairs of JSONL files; near ties are left out."""
    pairs = []
    for path in paths:
        for number, line in enumerate(read_jsonl(path), 1):
            try:
                pair = Pair(**line)
            except TypeError as error:
                raise PunaError(f"{path} line {number} is no pair ({error}); its fields are {Pair._fields}") from error
            if pair.strength not in STRENGTHS:
                raise PunaError(f"{path} line {number}: strength = {pair.strength!r}; it is one of {STRENGTHS}")
            if pair.strength in DECISIVE:
                pairs.append(pair)
    return pairs


def pair_lines(pairs: Iterable[Pair]) -> str:
    """Pairs as JSONL, fields with their default left out."""
    defaults = Pair._field_defaults
    return "".join(
        json.dumps({name: value for name, value in pair._asdict().items() if value != defaults.get(name, ...)}) + "\n"
        for pair in pairs
    )
