"""Needles in a haystack: facts hidden in a long text, asked for at its end.

A needle is a line `Remember KEY VALUE.`; at the end of the text, after `Remember`, the key alone asks for the value.
The words are single entries of the vocabulary at hand, so a model of a million weights can learn the task; only one
that finds the needle can answer it, since keys and values are drawn anew for every haystack and a key occurs nowhere
else in its text. Several needles share a haystack, which makes them harder to tell apart and one pass measure many
depths.

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
"""Keys and values are drawn from so many last words of the vocabulary, which are its rarest, or from twice as many as
there are needles. So few, because a tiny model has to see each of them often before it can copy it."""
MOST = 64
"""Needles in a haystack."""


@dataclass(frozen=True)
class Haystack:
    """One document with needles, and the questions for them at its end, in another order."""

    tokens: np.ndarray
    """[length] int64, beginning with begin_of_text"""
    answers: np.ndarray
    """[questions] int64: where the answers stand, each after the key that asks for it"""
    asked: np.ndarray
    """[questions] int64: the needle that each question is for, as the depths are counted"""
    depths: np.ndarray
    """[needles] float: where each needle lies in the text, from 0 (first) to 1 (last)"""


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
        self.words = np.array(words[-2 * MOST :])
        self.most = len(self.words) // 2

    @property
    def needle_tokens(self) -> int:
        """Tokens of a needle."""
        return len(self.lead) + 2 + len(self.end)

    def make(
        self,
        text: np.ndarray,
        length: int,
        depths: Sequence[float] | np.ndarray,
        random: np.random.Generator,
        repeats: int = 1,
    ) -> Haystack:
        """A haystack of exactly `length` tokens: the beginning of `text`, its documents joined to one, or the text over
        and over where it is too short; with a needle at each depth. Each is asked for so many times, in random order.
        PunaError when the needles do not fit."""
        count, size = len(depths), self.needle_tokens
        questions = 2 * count * repeats
        room = length - 1 - count * size - len(self.lead) - questions
        text = text[(text != self.bos_id) & (text != self.eos_id)]
        if count > self.most:
            raise PunaError(f"{count} needles are too many for one haystack: at most {self.most}")
        if room < 0 or (room and not len(text)):
            raise PunaError(
                f"{count} needles of {size} tokens, each asked for {repeats}x, do not fit into {length:,} tokens"
            )
        text = np.resize(text, room)
        keys, values = self._pairs(text, count, random)
        places = np.rint(np.asarray(depths) * room).astype(int)
        order = np.argsort(places, kind="stable")
        asked = random.permuted(np.tile(np.arange(count), repeats))

        parts, at = [np.array([self.bos_id])], 0
        for number in order:
            parts += [text[at : places[number]], self.lead, keys[number, None], values[number, None], self.end]
            at = places[number]
        pairs = np.stack([keys[asked], values[asked]], axis=1).flatten()
        tokens = np.concatenate([*parts, text[at:], self.lead, pairs]).astype(np.int64)

        answers = np.arange(length - questions, length, 2) + 1
        return Haystack(tokens, answers, asked, np.asarray(depths, float))

    def _pairs(self, text: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """So many keys that are not in the text, and their values."""
        words = self.words[-max(WORDS, 2 * count) :]
        free = words[~np.isin(words, text)]
        if len(free) < count:  # a long text of a small vocabulary: its rarest words must do
            seen = np.bincount(text, minlength=words.max() + 1)[words]
            free = words[np.argsort(seen, kind="stable")[:count]]
        keys = random.permutation(free)[:count]
        return keys, random.choice(np.setdiff1d(words, keys), count)
