"""Preferences: answers to one prompt that were ranked, as token ids (section 4.2.1)."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from puna.errors import PunaError
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.data.forms import STRENGTHS
from puna.text.chat import Chat, Message, render
from puna.text.tokenizer import Tokenizer

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

    @property
    def tokens(self) -> int:
        """That it takes in a row of DPO: both responses, each after the prompt's last token."""
        return len(self.prompt) + 1 + len(self.chosen) + len(self.rejected)


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


def own_pairs(path: Path, tokenizer: Tokenizer, longest: int) -> list[Pair]:
    """The preferences of the stage `chats`, but for those that take more than `longest` tokens as a row of DPO."""
    pairs = []
    for line in read_jsonl(path):
        chat = to_chat(line)
        prompt = render(chat, tokenizer, generation_prompt=True).ids
        answers = {}
        for name in ("chosen", "rejected", "edited"):
            if name in line:
                messages = [*chat.messages, Message.from_dict(line[name])]
                answers[name] = render(Chat(messages, tools=chat.tools), tokenizer).ids[len(prompt) :]
        if len(prompt) + 1 + sum(map(len, answers.values())) <= longest:
            pairs.append(Pair(prompt, **answers, strength=line["strength"]))
    return pairs


def first_of(pairs: Iterable[Pair], most: int) -> list[Pair]:
    """The first `most` pairs of every prompt."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for pair in pairs:
        prompt = tuple(pair.prompt)
        seen[prompt] += 1
        if seen[prompt] <= most:
            found.append(pair)
    return found


def pair_lines(pairs: Iterable[Pair]) -> str:
    """Pairs as JSONL, fields with their default left out."""
    defaults = Pair._field_defaults
    return "".join(
        json.dumps({name: value for name, value in pair._asdict().items() if value != defaults.get(name, ...)}) + "\n"
        for pair in pairs
    )
