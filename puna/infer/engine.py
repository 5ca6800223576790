"""The engine: one generator for chat, serving, sampling and evaluation.

`step()` is schedule, run, postprocess. The scheduler (scheduler.py) chooses what is computed and gives out blocks of
the cache (cache.py), the runner (runner.py) computes, the sampler (sampler.py) chooses tokens. A request is a prompt
with its Sampling (request.py); everything else is built on adding requests and taking steps.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.errors import PunaError
from puna.infer.cache import BLOCK, BlockManager, default_blocks, new_cache
from puna.infer.grammar import Grammar, Grammars
from puna.infer.native.runner import native_runner
from puna.infer.request import Finish, Output, Request, Sampling, TokenLogprob
from puna.infer.runner import FollowedRunner, Runner, TorchRunner, batch_of
from puna.infer.sampler import choose, restricted, token_logprobs
from puna.infer.scheduler import Chunk, Scheduler, blocks_for, first_wanted, scores
from puna.infer.speculative import Draft, NGrams
from puna.infer.text import OutputText
from puna.model.int8 import Precision, to_int8
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.text.tokenizer import Tokenizer
from puna.train.losses import token_log_probs

__all__ = ["Engine", "Output", "Sampling", "TokenLogprob"]

LOGITS = 2**24
"""Logits that exist at once where a whole prompt's are asked for."""


class Engine:
    """Generates with a Llama and its tokenizer. Not thread-safe: one thread owns an engine.

    `blocks`: of 16 tokens each, for the cache; by default those of default_blocks. `budget`: tokens in a step, which
    cuts long prompts into chunks. `rows`: requests that run side by side. `draft`: a small model of the same vocabulary
    that guesses `guesses` tokens ahead for requests that say so. `native`: use the compiled kernels, or graphs on a
    GPU, where they fit. `runner`: what runs the model where several processes hold a part each (parallel.py).
    """

    def __init__(
        self,
        model: Llama,
        tokenizer: Tokenizer,
        *,
        blocks: int | None = None,
        budget: int = 1024,
        rows: int = 256,
        draft: Llama | None = None,
        guesses: int = 4,
        native: bool = True,
        runner: FollowedRunner | None = None,
    ) -> None:
        if model.config.vocab_size != tokenizer.vocab_size:
            raise PunaError(
                f"the tokenizer has {tokenizer.vocab_size:,} entries but the model {model.config.vocab_size:,}: "
                "they do not belong together"
            )
        if rows < 1 or budget <= rows:
            raise PunaError(f"budget = {budget} must exceed rows = {rows}, which must be at least 1")
        self.model, self.tokenizer = model.eval(), tokenizer
        weight = model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.total_blocks = blocks or default_blocks(model, rows)
        self._manager = BlockManager(self.total_blocks + 1)
        self._scheduler = Scheduler(self._manager, budget, rows, max(2, LOGITS // model.config.vocab_size))
        self._followed = runner
        self._runner: Runner | None = runner
        self._cache: Tensor | None = None
        self.draft, self.guesses, self.native = draft, guesses, native
        self._draft: Draft | None = None
        self._grammars = Grammars(tokenizer)
        self._requests: dict[int, Request] = {}
        self._aborted: list[Output] = []
        self._next = 0

    @classmethod
    def load(
        cls, directory: str | Path, dtype: torch.dtype | None = None, precision: Precision | None = None, **options: Any
    ) -> "Engine":
        """An engine for a Hugging Face directory: by default fp32 on a CPU, bf16 on a GPU. `precision` quantises its
        matrices to int8 for a CPU, with activations ("int8") or without ("int8_weights"); the rest is then bf16."""
        device, usual = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        if precision is None:
            model = load_hf(directory, dtype=dtype or usual, device=device)
        else:
            model = to_int8(load_hf(directory, dtype=dtype or torch.bfloat16, device="cpu"), precision)
        return cls(model, Tokenizer.load(directory), **options)

    # Requests and steps

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        return len(self._scheduler.running)

    @property
    def free_blocks(self) -> int:
        """Blocks that no request holds, those of the prefix cache included."""
        return self._manager.free

    def grammar(self, sampling: Sampling) -> Grammar | None:
        """The grammar of a json_schema or regex, for `add`. It may take seconds to compile, and any thread may ask."""
        return self._grammars(sampling)

    def add(self, prompt: Sequence[int], sampling: Sampling, number: int = 0, grammar: Grammar | None = None) -> int:
        """Queue a prompt of token ids; the request's id. Its draws come from (sampling.seed, number). A grammar that
        the sampling asks for and that is not given is compiled here.

        Raises PunaError when the prompt is empty, holds what is no token, or could never fit.
        """
        return self._add(prompt, sampling, number, self._text(sampling), grammar)

    def _text(self, sampling: Sampling) -> OutputText:
        return OutputText(self.tokenizer, () if sampling.ignore_stop else sampling.stop)

    def _add(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        number: int,
        text: OutputText | None,
        grammar: Grammar | None = None,
    ) -> int:
        self._check(prompt, sampling)
        request = Request(self._next, list(prompt), sampling, number, text, grammar or self._grammars(sampling))
        request.ngrams = NGrams() if sampling.speculate == "ngram" else None
        self._next += 1
        self._requests[request.id] = request
        self._scheduler.waiting.append(request)
        return request.id

    def abort(self, request: int) -> None:
        """Drop a request and free its blocks at once; the next step reports it. Nothing if it has ended already."""
        if request in self._requests:
            self._end(self._requests[request])
            self._aborted.append(Output(request, [], finish="abort"))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run the model once for the requests whose turn it is, and report what is new; [] with nothing to do."""
        outputs, self._aborted = self._aborted, []
        self._announce_guesses()
        prompts, growing = self._scheduler.schedule()
        chunks = growing + prompts
        if not chunks:
            return outputs
        try:
            runner, cache = self._ready()
            if self._draft is not None:
                self._draft.follow(prompts)
                self._draft.guess([c.request for c in growing if c.request.sampling.speculate == "draft"])
            wanted = [range(max(c.start, first_wanted(c)) - c.start, c.end - c.start) for c in chunks]
            tokens, starts, lengths, tables = batch_of(chunks)
            rows = [start + i for start, places in zip(starts.tolist(), wanted) for i in places]
            logits = runner.step(tokens, starts, lengths, tables, cache, torch.tensor(rows, dtype=torch.int32))
        except BaseException:
            self._scheduler.start_over()  # the books say that this step was made
            raise
        # outputs alone want every row, and nobody looks at the parts: at 256 rows to make them takes a while
        parts = logits.split([len(places) for places in wanted]) if prompts else (logits,) * len(chunks)
        for chunk, part in zip(prompts, parts[len(growing) :]):
            if scores(chunk.request):
                self._score(chunk, part)
        ending = [(chunk.request, part) for chunk, part in zip(chunks, parts) if chunk.ends]
        return outputs + (self._continue(ending, logits) if ending else [])

    def forget(self) -> None:
        """Begin anew with all that was computed, as must be done when the model's weights have changed."""
        self.need_whole("forget")
        self._scheduler.start_over()
        self._runner = self._draft = None

    def close(self) -> None:
        """Let the other processes that hold the model end, where there are any; nothing can be asked afterwards."""
        if self._followed:
            self._followed.close()

    def need_whole(self, what: str) -> None:
        """PunaError where the model lies on several devices: `what` can only be done on one."""
        if self._followed:
            raise PunaError(f"{what} needs the whole model in one process; use --tp 1 and --pp 1 for it")

    def _check(self, prompt: Sequence[int], sampling: Sampling) -> None:
        vocab, longest = self.model.config.vocab_size, self.model.config.max_seq_len
        if len(prompt) == 0:
            raise PunaError("an empty prompt cannot be continued; begin with begin_of_text")
        if len(prompt) + sampling.max_tokens > longest:
            raise PunaError(
                f"a prompt of {len(prompt):,} tokens and max_tokens = {sampling.max_tokens:,} exceed the model's "
                f"{longest:,}; shorten one of them"
            )
        if (needed := blocks_for(len(prompt) + sampling.max_tokens)) > self.total_blocks:
            raise PunaError(
                f"a prompt of {len(prompt):,} tokens and max_tokens = {sampling.max_tokens:,} need {needed:,} blocks "
                f"of {BLOCK} tokens but the cache has {self.total_blocks:,}; shorten one, or give more blocks"
            )
        if sampling.speculate == "draft" and self.draft is None:
            raise PunaError('sampling.speculate = "draft": the engine has no draft model; give it one, or use "ngram"')
        for wrong in (token for token in (*prompt, *sampling.logit_bias) if not 0 <= token < vocab):
            raise PunaError(f"token id {wrong} is outside the vocabulary of {vocab:,}; use this model's tokenizer")

    def _ready(self) -> tuple[Runner, Tensor]:
        """The runner and its cache, made when they are first needed."""
        if self._runner is None:
            self._runner = runner_for(self.model, self.native)
        if self._cache is None:
            self._cache = new_cache(self.model.config, self.total_blocks + 1, self.dtype, self.device)
        if self._draft is None and self.draft is not None:
            cache = new_cache(self.draft.config, self.total_blocks + 1, self.dtype, self.device)
            self._draft = Draft(runner_for(self.draft, self.native), cache)
        return self._runner, self._cache

    def _announce_guesses(self) -> None:
        """Give requests in their output their guesses, or the room for those that the draft model will make."""
        growing = [r for r in self._scheduler.running if r.in_output and r.sampling.speculate != "off"]
        for request in growing:
            most = min(self.guesses, request.room - 1, self._scheduler.budget // self.running - 1)
            if request.ngrams is not None:
                request.guesses = request.ngrams.guess(request.tokens, most)
            else:
                request.guesses = [0] * most

    def _score(self, chunk: Chunk, logits: Tensor) -> None:
        """Add the log-probabilities of prompt tokens that the chunk's logits [tokens wanted, vocab] are about."""
        request, likeliest = chunk.request, chunk.request.sampling.prompt_logprobs or 0
        known = request.prompt_logprobs = request.prompt_logprobs or [None]
        following = request.tokens[len(known) : chunk.end + 1]
        known += token_logprobs(logits[: len(following)], following, likeliest)
        for place in range(chunk.start // BLOCK, len(known) // BLOCK):
            kept = known[place * BLOCK : (place + 1) * BLOCK]
            self._manager.keep_logprobs(request.keys[place], likeliest, kept)

    def _continue(self, ending: list[tuple[Request, Tensor]], logits: Tensor) -> list[Output]:
        """Choose the next tokens of requests from their last logits, one row for each guess and one more."""
        counts = [1 + len(request.guesses) for request, _ in ending]
        if sum(counts) < len(logits):
            logits = torch.cat([part[-count:] for (_, part), count in zip(ending, counts)])
        requests = [request for (request, _), count in zip(ending, counts) for _ in range(count)]
        masks = [mask for (request, _), count in zip(ending, counts) for mask in masks_of(request, count)]
        uniforms = [request.uniform(i) for (request, _), count in zip(ending, counts) for i in range(count)]
        samplings = [request.sampling for request in requests]
        allowed = restricted(logits, [sampling.logit_bias for sampling in samplings], masks)
        tokens = choose(allowed, samplings, uniforms)
        logprobs = self._output_logprobs(samplings, logits, tokens)
        outputs, at = [], 0
        for (request, _), count in zip(ending, counts):
            outputs.append(self._accept(request, tokens[at : at + count], logprobs[at : at + count]))
            at += count
        return outputs

    def _output_logprobs(
        self, samplings: list[Sampling], logits: Tensor, tokens: list[int]
    ) -> list[TokenLogprob | None]:
        asking = [i for i, sampling in enumerate(samplings) if sampling.logprobs is not None]
        found: list[TokenLogprob | None] = [None] * len(tokens)
        if asking:
            most = max(samplings[i].logprobs or 0 for i in asking)
            for i, one in zip(asking, token_logprobs(logits[asking], [tokens[i] for i in asking], most)):
                found[i] = TokenLogprob(one.token, one.logprob, one.top[: samplings[i].logprobs])
        return found

    def _accept(self, request: Request, tokens: list[int], logprobs: list[TokenLogprob | None]) -> Output:
        """Append tokens for as long as each is the one that was guessed, and end the request where it ends."""
        output = Output(request.id, [], logprobs=None if request.sampling.logprobs is None else [])
        if not request.begun:
            output.cached = request.cached
            output.prompt_logprobs = request.prompt_logprobs or None
        guesses, request.guesses = request.guesses, []
        for place, token in enumerate(tokens):
            request.tokens.append(token)
            output.tokens.append(token)
            if output.logprobs is not None and (one := logprobs[place]):
                output.logprobs.append(one)
            output.finish = self._finish(request, token, output)
            if output.finish or place == len(guesses) or token != guesses[place]:
                break
        request.computed = len(request.tokens) - 1
        request.drafted = min(request.drafted, request.computed)
        if output.finish:
            self._end(request)
        return output

    def _finish(self, request: Request, token: int, output: Output) -> Finish | None:
        """Take up a new token: its text, and whether it ends the request."""
        sampling, text = request.sampling, request.text
        stops = not sampling.ignore_stop and (token in self.tokenizer.stop_ids or token in sampling.stop_ids)
        if text is not None and not stops:
            output.text += text.push(token)
            stops = text.stopped
        if request.grammar is not None:
            request.grammar.push(token)
        finish: Finish | None = "stop" if stops else "length" if request.room == 0 else None
        if text is not None and finish:
            output.text += text.finish()
        return finish

    def _end(self, request: Request) -> None:
        del self._requests[request.id]
        self._scheduler.remove(request)

    # Whole jobs

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int = 1,
        batch: int = 128,
        numbers: Sequence[int] | None = None,
    ) -> list[list[list[int]]]:
        """`n` completions of each prompt: [prompts][n] token ids, the stop token included where one came.

        The j-th completion of a prompt draws from (seed, its number * n + j): give the `numbers` when a job is
        split into calls, else they count from 0. At most `batch` are under way at a time. For an engine without other
        requests: their outputs would be lost.
        """
        for prompt in prompts:
            self._check(prompt, sampling)
        numbers = range(len(prompts)) if numbers is None else numbers
        jobs = enumerate((prompt, number * n + j) for prompt, number in zip(prompts, numbers) for j in range(n))
        place: dict[int, int] = {}
        done: list[list[int]] = [[] for _ in range(len(prompts) * n)]
        going = 0
        try:
            while True:
                for at, (prompt, number) in islice(jobs, batch - going):
                    text = self._text(sampling) if sampling.stop else None  # else nobody reads it
                    place[self._add(prompt, sampling, number, text)] = at
                    going += 1
                if not going:
                    return [done[i : i + n] for i in range(0, len(done), n)]
                for output in self.step():
                    if output.request in place:
                        done[place[output.request]] += output.tokens
                        going -= output.finish is not None
        finally:
            for request in place:
                self.abort(request)

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """The tokens of one completion as they come, the stop token included."""
        request = self.add(prompt, sampling)
        try:
            while request in self._requests:
                for output in self.step():
                    if output.request == request:
                        yield from output.tokens
        finally:
            self.abort(request)

    @torch.inference_mode()
    def log_probs(self, texts: Sequence[Sequence[int]], batch: int = 64) -> list[Tensor]:
        """For each row of ids [n], the log-probability of each token given those before it, [n - 1], in nats."""
        self.need_whole("log_probs")
        results: list[Tensor] = [torch.empty(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), batch):
            numbers = order[at : at + batch]
            longest = max(len(texts[i]) for i in numbers)
            rows = [[*texts[i], *[0] * (longest - len(texts[i]))] for i in numbers]
            tokens = torch.tensor(rows, device=self.device)
            hidden = self.model.hidden(tokens[:, :-1])
            following = tokens[:, 1:].flatten()
            picked = self._token_log_probs(hidden.flatten(0, 1), following).view(len(rows), -1)
            for i, row in zip(numbers, picked):
                results[i] = row[: len(texts[i]) - 1].cpu()
        return results

    def _token_log_probs(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Log-probability of each token `following` [n] after hidden states [n, dim]: [n], fp32."""
        head = self.model.lm_head
        if type(head) is nn.Linear:
            return token_log_probs(hidden, head.weight, following)
        size = max(1, LOGITS // self.model.config.vocab_size)  # int8 multiplies in a way of its own
        parts = zip(hidden.float().split(size), following.split(size))
        return torch.cat([-F.cross_entropy(head(x), tokens, reduction="none") for x, tokens in parts])


def runner_for(model: Llama, native: bool) -> Runner:
    """What runs a model; `native`: what is made for its device, where there is such a thing."""
    if native and model.embed_tokens.weight.is_cuda:
        from puna.infer.gpu import GraphRunner  # takes a second to import

        return GraphRunner(model)
    return (native_runner(model) if native else None) or TorchRunner(model)


def masks_of(request: Request, count: int) -> list[np.ndarray | None]:
    """Which tokens the request's grammar allows at each of its next `count` places."""
    return request.grammar.masks(request.guesses) if request.grammar else [None] * count
