"""What is asked of the engine, what it gives back, and the state of a request between the two."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from puna.errors import PunaError
from puna.infer.text import OutputText

if TYPE_CHECKING:
    from puna.infer.grammar import Grammar
    from puna.infer.speculative import NGrams

Finish = Literal["stop", "length", "abort"]
MOST_LOGPROBS = 100
"""Of the likeliest tokens at each place: more is no use, and a reply would be huge."""


@dataclass(frozen=True)
class Sampling:
    """How to continue a prompt, and what to tell about it.

    The next token is drawn from softmax((logits + logit_bias) / temperature), where a json_schema or regex has removed
    what it does not allow, cut to the top_k likeliest tokens, then to the likeliest of total mass top_p, then to those
    of at least min_p times the likeliest's probability; temperature 0 takes the likeliest. Log-probabilities are those
    of the model itself, before all of that.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    """The text ends before the first of these strings."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the output, besides the tokenizer's own."""
    ignore_stop: bool = False
    """Go on to max_tokens whatever comes."""
    logprobs: int | None = None
    """With each token its log-probability and the k likeliest tokens'; None for nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    json_schema: str | None = None
    """The output is JSON of this schema; "{}" is any object."""
    regex: str | None = None
    """The output as a whole matches this expression."""
    speculate: Literal["off", "ngram", "draft"] = "off"
    """Guess tokens ahead, from the text so far or by the engine's draft model; what comes out is distributed alike."""

    def __post_init__(self) -> None:
        def check(name: str, holds: bool, mend: str) -> None:
            if not holds:
                raise PunaError(f"sampling.{name} = {getattr(self, name)!r}: must be {mend}")

        check("max_tokens", self.max_tokens >= 1, "at least 1")
        check("temperature", 0 <= self.temperature <= 100, "between 0 (greedy) and 100")
        check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        check("seed", 0 <= self.seed < 2**64, "between 0 and 2^64 - 1")
        check("top_k", self.top_k >= 0, "at least 0 (all tokens)")
        check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        check("stop", not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty")
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            check(name, asked is None or 0 <= asked <= MOST_LOGPROBS, f"None or 0 to {MOST_LOGPROBS}")
        check("logit_bias", all(abs(b) <= 100 for b in self.logit_bias.values()), "token ids with -100 to 100")
        check("speculate", self.speculate in ("off", "ngram", "draft"), "off, ngram or draft")
        if self.json_schema is not None and self.regex is not None:
            raise PunaError("sampling.json_schema and sampling.regex exclude each other; drop one")
        if self.ignore_stop and self.constrained:
            raise PunaError("sampling.ignore_stop goes on after a json_schema or regex has ended; drop one")

    @property
    def constrained(self) -> bool:
        """Whether the output must be of some form."""
        return self.json_schema is not None or self.regex is not None


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log-probability in nats, and the likeliest tokens at its place with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Output:
    """What one step gave one request."""

    request: int
    tokens: list[int]
    """New tokens, the stop token included: usually one, several with speculation."""
    text: str = ""
    """New text that is final: whole characters, no special token, no part of a stop string."""
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """With the first output; None for the first token, which nothing comes before."""
    finish: Finish | None = None
    cached: int = 0
    """Tokens of the prompt that were in the cache already."""


@dataclass(eq=False)
class Request:
    """A prompt on its way: its tokens so far, where their keys and values lie, and what follows the output."""

    id: int
    tokens: list[int]
    """The prompt's, then the output's."""
    sampling: Sampling
    number: int = 0
    text: OutputText | None = None
    grammar: "Grammar | None" = None
    ngrams: "NGrams | None" = None

    prompt: int = field(init=False)
    """Tokens of the prompt."""
    computed: int = 0
    """Leading tokens whose keys and values are in the cache, or will be after the step being run."""
    blocks: list[int] = field(default_factory=list)
    """Where: the cache's blocks in order. The last may have room for tokens to come."""
    keys: list[bytes] = field(default_factory=list)
    """Of the leading full blocks: what they hold, tokens before them included."""
    published: int = 0
    """Leading blocks that others may share."""
    cached: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    """Tokens that may follow, to be judged in the next step."""
    drafted: int = 0
    """Leading tokens, guesses included, that the draft model has computed."""

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)
        self._uniforms: list[float] = []

    @property
    def begun(self) -> bool:
        return len(self.tokens) > self.prompt

    @property
    def in_output(self) -> bool:
        """Only the last token is left to compute; false while a preempted request is being computed again."""
        return self.begun and self.computed == len(self.tokens) - 1

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self.prompt + self.sampling.max_tokens - len(self.tokens)

    def between(self, start: int, end: int) -> list[int]:
        """Tokens start to end, guesses counted after the others."""
        known = self.tokens[start:end]
        return known + self.guesses[max(0, start - len(self.tokens)) :][: end - start - len(known)]

    def uniform(self, ahead: int = 0) -> float:
        """The random number in [0, 1) of the next token, or of one further ahead; zero where none is needed."""
        if self.sampling.temperature == 0:
            return 0.0
        place = len(self.tokens) - self.prompt + ahead
        if place >= len(self._uniforms):
            self._uniforms += self._generator.random(place + 16 - len(self._uniforms)).tolist()
        return self._uniforms[place]

    @cached_property
    def _generator(self) -> np.random.Generator:
        return np.random.default_rng([self.sampling.seed, self.number])
