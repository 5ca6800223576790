"""The engine: one generator for chat, sampling and evaluation.

A batch of prompts is generated together. What all of them begin with (a system prompt, a list of tools) runs through
the model once; the rest is padded on the left so that every row appends at the same place. Each completion draws its
random numbers from its own (seed, index), so it does not depend on what shares its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.text.tokenizer import Tokenizer
from puna.train.losses import token_log_probs


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token. Temperature 0 is greedy; top_p keeps the likeliest tokens of that total mass."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise PunaError(f"{self} needs max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")


class KVCache:
    """Keys and values of all layers, [layers][rows, kv_heads, room, head_dim], filled from the left."""

    def __init__(self, model: Llama, rows: int, room: int) -> None:
        config = model.config
        weight = model.embed_tokens.weight
        shape = (config.layers, 2, rows, config.kv_heads, room, config.head_dim)
        self.data = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.used = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.used + k.shape[2]
        keys, values = self.data[layer]
        keys[:, :, self.used : end], values[:, :, self.used : end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def spread(self, model: Llama, rows: int, room: int) -> "KVCache":
        """A wider cache whose every row begins with this one's only row."""
        wide = KVCache(model, rows, room)
        wide.data[..., : self.used, :] = self.data[..., : self.used, :]
        wide.used = self.used
        return wide

    def keep(self, rows: Tensor) -> None:
        self.data = self.data[:, :, rows]


class Engine:
    """Generates with a Llama and its tokenizer."""

    def __init__(self, model: Llama, tokenizer: Tokenizer) -> None:
        if model.config.vocab_size != tokenizer.vocab_size:
            raise PunaError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries but the model {model.config.vocab_size:,}: "
                "they do not belong together"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = model.embed_tokens.weight.device

    @classmethod
    def load(cls, directory: str | Path) -> "Engine":
        """An engine for a Hugging Face directory: fp32 on a CPU, bf16 on a GPU."""
        device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        return cls(load_hf(directory, dtype=dtype, device=device), Tokenizer.load(directory))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int = 1,
        batch: int = 128,
        first: int = 0,
    ) -> list[list[list[int]]]:
        """`n` completions of each prompt: [prompts][n] token ids, the stop token included where one came.

        The i-th completion of a call draws from (seed, first + i): give `first` when a job is split into calls.
        """
        rows = [list(prompt) for prompt in prompts for _ in range(n)]
        # neighbours in length pad little; the result does not depend on it
        order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
        done: list[list[int]] = [[] for _ in rows]
        for at in range(0, len(order), batch):
            numbers = order[at : at + batch]
            for token_of in self._steps([rows[i] for i in numbers], [first + i for i in numbers], sampling):
                for place, token in token_of.items():
                    done[numbers[place]].append(token)
        return [done[i : i + n] for i in range(0, len(done), n)]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The tokens of one completion as they come, the stop token included."""
        for token_of in self._steps([list(prompt)], [0], sampling):
            yield token_of[0]

    @torch.inference_mode()
    def _steps(self, prompts: list[list[int]], numbers: list[int], sampling: Sampling) -> Iterator[dict[int, int]]:
        """One dictionary a step: the place of each prompt still running -> its next token."""
        longest = max(map(len, prompts))
        room = longest + sampling.max_tokens
        if min(map(len, prompts)) == 0:
            raise PunaError("an empty prompt cannot be continued; begin with begin_of_text")
        if room > self.model.config.max_seq_len:
            raise PunaError(
                f"a prompt of {longest:,} tokens and max_tokens = {sampling.max_tokens:,} exceed the model's "
                f"{self.model.config.max_seq_len:,}; shorten one of them"
            )
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1)  # each row keeps a token of its own
        cache = KVCache(self.model, 1, max(shared, 1))
        if shared:
            head = torch.tensor([prompts[0][:shared]], device=self.device)
            self._forward(head, torch.arange(shared, device=self.device)[None], None, cache)
        cache = cache.spread(self.model, len(prompts), room)

        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        padding = longest - lengths
        tails = [[0] * (longest - len(p)) + p[shared:] for p in prompts]
        tokens = torch.tensor(tails, device=self.device)
        columns = torch.arange(room, device=self.device)
        # a row's padding lies between the shared head and its own tail: no token may look there
        visible = (columns < shared) | (columns >= (shared + padding)[:, None])
        places = list(range(len(prompts)))
        generators = [np.random.default_rng([sampling.seed, number]) for number in numbers]
        for _ in range(sampling.max_tokens):
            end = cache.used + tokens.shape[1]
            at = columns[cache.used : end]
            positions = (at[None] - padding[:, None]).clamp(min=0)
            mask = visible[:, None, None, :end] & (columns[:end] <= at[:, None])
            # a padding token sees itself alone, so that its softmax is defined
            mask = mask | (columns[:end] == at[:, None])
            logits = self._forward(tokens, positions, mask, cache)
            chosen = choose(logits, sampling, generators)
            yield dict(zip(places, chosen))
            running = [i for i, token in enumerate(chosen) if token not in self.tokenizer.stop_ids]
            if not running:
                return
            tokens = torch.tensor([[chosen[i]] for i in running], device=self.device)
            if len(running) < len(places):
                index = torch.tensor(running, device=self.device)
                cache.keep(index)
                padding, visible = padding[index], visible[index]
                places = [places[i] for i in running]
                generators = [generators[i] for i in running]

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """Logits [rows, vocab] of the last column, in fp32; the cache grows by the columns."""
        hidden = self.model.hidden(tokens, positions, mask=mask, cache=cache)
        cache.used += tokens.shape[1]
        return self.model.lm_head(hidden[:, -1]).float()

    @torch.inference_mode()
    def log_probs(self, texts: Sequence[Sequence[int]], batch: int = 64) -> list[Tensor]:
        """For each row of ids [n], the log-probability of each token given those before it, [n - 1], in nats."""
        results: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), batch):
            numbers = order[at : at + batch]
            longest = max(len(texts[i]) for i in numbers)
            rows = [[*texts[i], *[0] * (longest - len(texts[i]))] for i in numbers]
            tokens = torch.tensor(rows, device=self.device)
            hidden = self.model.hidden(tokens[:, :-1])
            following = tokens[:, 1:].flatten()
            picked = token_log_probs(hidden.flatten(0, 1), self.model.lm_head.weight, following).view(len(rows), -1)
            for i, row in zip(numbers, picked):
                results[i] = row[: len(texts[i]) - 1].cpu()
        return results


def choose(logits: Tensor, sampling: Sampling, generators: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each row from its logits [rows, vocab]."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    probs, ids = (logits / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    total = probs.cumsum(-1)
    kept = torch.where(total - probs < sampling.top_p, probs, 0.0).double()
    total = kept.cumsum(-1)
    draws = torch.tensor([[generator.random()] for generator in generators], dtype=torch.float64)
    place = torch.searchsorted(total, draws.to(total.device) * total[:, -1:], right=True)
    place = torch.minimum(place, (kept > 0).sum(-1, keepdim=True) - 1)
    return ids.gather(-1, place)[:, 0].tolist()


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with: as many as the first and the last of them in order."""
    first, last = min(prompts), max(prompts)
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
