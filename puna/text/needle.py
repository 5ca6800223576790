"""Needles in a haystack: facts hidden in a long text, asked for at its end.

A needle is a line that ties a key to a value, all of words; the key alone, at the end of the text, asks for the value.
The words are single entries of the vocabulary at hand, so a model of a million weights can learn the task; only one
that finds the needle can answer it, since keys and values are drawn anew for every haystack and a key occurs nowhere
else in it. Several needles share a haystack, which makes them harder to tell apart and one pass measure many depths.

The paper evaluates with one needle (section 3.4.2) and with four (section 5.2.6) and does not give their form: this
one is ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puna.errors import PunaError
from puna.text.tokenizer import Tokenizer

WORDS = 32
"""Keys and values are drawn from the last words of the vocabulary, which are its rarest. So few, because a tiny model
has to see each of them often before it can copy it."""
MOST = WORDS // 2
"""Needles in a haystack."""


@dataclass(frozen=True)
class Haystack:
    """One document with needles, and the questions for them at its end, in another order."""

    tokens: np.ndarray
    """[length] int64, beginning with begin_of_text"""
    answers: np.ndarray
    """[needles] int64: where the value of each needle stands as the answer to its question"""
    depths: np.ndarray
    """[needles] float: where each needle lies in the text, from 0 (first) to 1 (last)"""
    hidden: np.ndarray
    """[length] bool: keys and values where nothing foretells them"""


class NeedleMaker:
    """Makes haystacks of a tokenizer's own words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.lead = np.array(tokenizer.encode("\nRemember"))
        self.end = np.array(tokenizer.encode("."))
        entries = ((id, tokenizer.decode_bytes([id])) for id in range(tokenizer.vocab_size))
        words = [id for id, entry in entries if re.fullmatch(rb" [a-z]{3,}", entry)]
        if len(words) < WORDS:
            raise PunaError(
                f"needles need {WORDS} entries of the vocabulary that are a lower-case word, and it has {len(words)}; "
                "raise tokenizer.vocab_size"
            )
        self.words = np.array(words[-WORDS:])

    @property
    def needle_tokens(self) -> int:
        """Tokens of a needle, and of the question for it with its answer."""
        return len(self.lead) + 2 + len(self.end)

    def make(
        self, text: np.ndarray, length: int, depths: Sequence[float] | np.ndarray, random: np.random.Generator
    ) -> Haystack:
        """A haystack of exactly `length` tokens: the beginning of `text`, its documents joined to one, or the text over
        and over where it is too short; with a needle at each depth. PunaError when the needles do not fit."""
        count, size = len(depths), self.needle_tokens
        room = length - 1 - 2 * count * size
        text = text[(text != self.bos_id) & (text != self.eos_id)]
        if count > MOST:
            raise PunaError(f"{count} needles are too many for one haystack: at most {MOST}")
        if room < 0 or (room and not len(text)):
            raise PunaError(f"{count} needles of {size} tokens, asked for, do not fit into {length:,} tokens of text")
        text = np.resize(text, room)
        free = self.words[~np.isin(self.words, text)]
        if len(free) < count:  # a long text of a small vocabulary: its rarest words must do
            seen = np.bincount(text, minlength=self.words.max() + 1)[self.words]
            free = self.words[np.argsort(seen, kind="stable")[:count]]
        keys = random.permutation(free)[:count]
        values = random.choice(np.setdiff1d(self.words, keys), count)
        lines = [np.concatenate([self.lead, pair, self.end]) for pair in zip(keys, values)]

        places = np.rint(np.asarray(depths) * room).astype(int)
        order = np.argsort(places, kind="stable")
        parts, at = [np.array([self.bos_id])], 0
        for number in order:
            parts += [text[at : places[number]], lines[number]]
            at = places[number]
        parts.append(text[at:])
        asked = random.permutation(count)
        tokens = np.concatenate([*parts, *(lines[number] for number in asked)]).astype(np.int64)

        key_at = len(self.lead)
        hidden = np.zeros(length, bool)
        for rank, number in enumerate(order):
            start = 1 + places[number] + rank * size + key_at
            hidden[start : start + 2] = True
        answers = np.zeros(count, np.int64)
        for rank, number in enumerate(asked):
            start = length - (count - rank) * size + key_at
            hidden[start] = True
            answers[number] = start + 1
        return Haystack(tokens, answers, np.asarray(depths, float), hidden)
