"""Outputs of a required form, a JSON schema or a regular expression, by llguidance.

At each place the grammar says which tokens may follow, and all others are given no chance. Where the output may end,
the tokenizer's stop tokens are allowed; where it must, nothing else is.
"""

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np

from puna.errors import PunaError
from puna.infer.request import Sampling
from puna.text.tokenizer import Tokenizer

FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One space after a comma and a colon, as in the calls of tools that models learn, and no other white space: where it
is free, a weak model writes it for ever."""
KEPT = 32
"""Grammars that are kept for the next request that asks for the same, as every call of a tool does."""


class Grammars:
    """Makes grammars for a tokenizer, in any thread. The tokenizer's table is made when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._table: llguidance.LLTokenizer | None = None
        self._compiled = lru_cache(KEPT)(self._compile)

    def __call__(self, sampling: Sampling) -> "Grammar | None":
        """The grammar that a request asks for, at its beginning; PunaError when it cannot be read."""
        if not sampling.constrained:
            return None
        return self._compiled(sampling.json_schema, sampling.regex).copy()

    def _compile(self, json_schema: str | None, regex: str | None) -> "Grammar":
        try:
            if json_schema is not None:
                schema = '{"type": "object"}' if json_schema.strip() == "{}" else json_schema
                grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=FORM)
            else:
                grammar = llguidance.LLMatcher.grammar_from_regex(regex or "")
        except ValueError as error:
            raise PunaError(f"sampling.json_schema: {error}; give a JSON schema") from None
        with self._lock:
            self._table = self._table or table(self._tokenizer)
        matcher = llguidance.LLMatcher(self._table, grammar, log_level=0)
        if matcher.is_error():
            asked = "json_schema" if json_schema is not None else "regex"
            raise PunaError(f"sampling.{asked} cannot be followed: {matcher.get_error().strip()}; simplify it")
        return Grammar(matcher, self._tokenizer.vocab_size)


class Grammar:
    """How far one output has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> "Grammar":
        return Grammar(self._matcher.deep_copy(), self._vocab_size)

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)

    def masks(self, guesses: Sequence[int]) -> list[np.ndarray | None]:
        """Which tokens [vocab] may come next, and which after each guess; None, any, after a guess that may not."""
        masks: list[np.ndarray | None] = [self._mask()]
        taken = 0
        for guess in guesses:
            if not self._matcher.try_consume_tokens([guess]):
                break
            taken += 1
            masks.append(self._mask())
        self._matcher.rollback(taken)
        return masks + [None] * (len(guesses) - taken)

    def _mask(self) -> np.ndarray:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        # the bits fill whole words of 32
        return np.unpackbits(bits, bitorder="little", count=self._vocab_size).astype(bool)


def table(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """The tokenizer as llguidance wants it."""
    wrapper = llguidance.TokenizerWrapper(_Table(tokenizer))
    return llguidance.LLTokenizer(wrapper, eos_token=list(tokenizer.stop_ids))


class _Table:
    """Names that llguidance.TokenizerWrapper asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.special_token_ids = list(tokenizer.special.values())
        words = {rank: word for word, rank in tokenizer.ranks.items()} | {
            rank: name.encode() for name, rank in tokenizer.special.items()
        }
        self.tokens = [words[rank] for rank in range(tokenizer.vocab_size)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_bytes(text)
