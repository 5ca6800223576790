"""The text of an output as it grows: whole characters, no special tokens, and nothing that may become a stop string."""

from collections.abc import Sequence

from puna.text.tokenizer import Tokenizer


class OutputText:
    """Fed with tokens, gives text as soon as it is final."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder, self._stop = tokenizer.stream_decoder(), stop
        self._special = frozenset(tokenizer.special.values())
        self._held = ""
        self.stopped = False
        """A stop string has come; what is given ends before it."""

    def push(self, token: int) -> str:
        if token not in self._special:
            self._held += self._decoder.push(token)
        return self._release(len(self._held) - self._undecided())

    def finish(self) -> str:
        """What was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        self._held += self._decoder.finish()
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        found = [place for place in map(self._held.find, self._stop) if place >= 0]
        if found:
            self.stopped, length = True, min(found)
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _undecided(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        ends = range(min(len(self._held), max(map(len, self._stop), default=1) - 1), 0, -1)
        return next((n for n in ends if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)
