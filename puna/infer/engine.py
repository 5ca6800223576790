"""The engine: one generator for chat, serving, sampling and evaluation.

`step()` is schedule, run, postprocess. The scheduler (scheduler.py) chooses what is computed and gives out blocks of
the cache (cache.py), the runner (runner.py) computes, the sampler (sampler.py) chooses tokens. A request is a prompt
with its Sampling (request.py); everything else is built on adding requests and taking steps.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.infer.cache import BLOCK, BlockManager, block_bytes, new_cache
from puna.infer.request import Finish, Output, Request, Sampling, TokenLogprob
from puna.infer.runner import Runner, table_of
from puna.infer.sampler import biased, choose, token_logprobs
from puna.infer.scheduler import Chunk, Scheduler, blocks_for
from puna.infer.text import OutputText
from puna.model.llama import Llama
from puna.model.weights import load_hf
from puna.text.tokenizer import Tokenizer
from puna.train.losses import token_log_probs

__all__ = ["Engine", "Output", "Sampling", "TokenLogprob"]

LOGITS = 2**24
"""Logits that exist at once where a whole prompt's are asked for."""


class Engine:
    """Generates with a Llama and its tokenizer. Not thread-safe: one thread owns an engine.

    `blocks`: of 16 tokens each, for the cache; by default as many as `rows` requests of the longest context need,
    within a quarter of the memory that is free. `budget`: tokens in a step, which cuts long prompts into chunks.
    `rows`: requests that run side by side.
    """

    def __init__(
        self, model: Llama, tokenizer: Tokenizer, *, blocks: int | None = None, budget: int = 1024, rows: int = 256
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
        self._scheduler = Scheduler(self._manager, budget, rows)
        self._runner: Runner | None = None
        self._requests: dict[int, Request] = {}
        self._texts: dict[int, OutputText] = {}
        self._aborted: list[Output] = []
        self._next = 0

    @classmethod
    def load(cls, directory: str | Path, dtype: torch.dtype | None = None, **options: int | None) -> "Engine":
        """An engine for a Hugging Face directory: by default fp32 on a CPU, bf16 on a GPU."""
        device, usual = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        return cls(load_hf(directory, dtype=dtype or usual, device=device), Tokenizer.load(directory), **options)  # pyright: ignore[reportArgumentType]

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

    def add(self, prompt: Sequence[int], sampling: Sampling, number: int = 0) -> int:
        """Queue a prompt of token ids; the request's id. Its draws come from (sampling.seed, number).

        Raises PunaError when the prompt is empty, holds what is no token, or could never fit.
        """
        self._check(prompt, sampling)
        request = Request(self._next, list(prompt), sampling, number)
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
        plan = self._scheduler.schedule()
        if not plan.prompts and not plan.outputs:
            return outputs
        requests, logits = self._run(plan.prompts, plan.outputs)
        if requests:
            outputs += self._postprocess(requests, torch.cat(logits) if len(logits) > 1 else logits[0])
        return outputs

    def forget(self) -> None:
        """Empty the prefix cache, as must be done when the model's weights have changed. Running requests go on."""
        self._manager.forget_all()

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
        for wrong in (token for token in (*prompt, *sampling.logit_bias) if not 0 <= token < vocab):
            raise PunaError(f"token id {wrong} is outside the vocabulary of {vocab:,}; use this model's tokenizer")

    def _run(self, prompts: list[Chunk], outputs: list[Chunk]) -> tuple[list[Request], list[Tensor]]:
        """Compute a plan; the requests that get a token, and their logits."""
        if self._runner is None:
            cache = new_cache(self.model.config, self.total_blocks + 1, self.dtype, self.device)
            self._runner = Runner(self.model, cache)
        requests, logits = [], []
        if outputs:
            requests += [chunk.request for chunk in outputs]
            lengths = np.array([chunk.end for chunk in outputs], np.int32)
            tables = table_of([request.blocks for request in requests], blocks_for(int(lengths.max())))
            tokens = np.array([request.tokens[-1] for request in requests], np.int32)
            logits.append(self._runner.decode(tokens, lengths, tables))
        if prompts:
            hidden = self._runner.prefill(prompts)
            for chunk, states in zip(prompts, hidden):
                self._prompt_logprobs(chunk, states)
            ready = [(c.request, states[-1]) for c, states in zip(prompts, hidden) if c.end == len(c.request.tokens)]
            if ready:
                requests += [request for request, _ in ready]
                logits.append(self._runner.logits(torch.stack([state for _, state in ready])))
        return requests, logits

    def _prompt_logprobs(self, chunk: Chunk, hidden: Tensor) -> None:
        """Add what hidden [tokens, dim] tells about a prompt's tokens that come after those of the chunk."""
        request, asked = chunk.request, chunk.request.sampling.prompt_logprobs
        if asked is None or request.begun or self._runner is None:
            return
        known = request.prompt_logprobs = request.prompt_logprobs or [None]
        size = max(1, LOGITS // self.model.config.vocab_size)
        while len(known) < min(chunk.end + 1, request.prompt):
            end = min(len(known) + size, chunk.end + 1, request.prompt)
            states = hidden[len(known) - 1 - chunk.start : end - 1 - chunk.start]
            known += token_logprobs(self._runner.logits(states), request.tokens[len(known) : end], asked)
        for place in range(chunk.start // BLOCK, len(known) // BLOCK):
            kept = known[place * BLOCK : (place + 1) * BLOCK]
            self._manager.keep_logprobs(request.keys[place], asked, kept)

    def _postprocess(self, requests: list[Request], logits: Tensor) -> list[Output]:
        """Choose a token for each row of logits, and see which requests have ended."""
        tokens = choose(biased(logits, requests), [r.sampling for r in requests], Generators(requests))
        logprobs = self._output_logprobs(requests, logits, tokens)
        outputs = []
        for request, token in zip(requests, tokens):
            output = Output(request.id, [token], logprobs=logprobs.get(request.id))
            if not request.begun:
                output.cached = request.cached
                if request.sampling.prompt_logprobs is not None:
                    output.prompt_logprobs = request.prompt_logprobs
            request.tokens.append(token)
            self._tell(request, output)
            outputs.append(output)
        return outputs

    def _output_logprobs(
        self, requests: list[Request], logits: Tensor, tokens: list[int]
    ) -> dict[int, list[TokenLogprob]]:
        asking = [i for i, request in enumerate(requests) if request.sampling.logprobs is not None]
        if not asking:
            return {}
        most = max(requests[i].sampling.logprobs or 0 for i in asking)
        found = token_logprobs(logits[asking], [tokens[i] for i in asking], most)
        return {
            requests[i].id: [TokenLogprob(one.token, one.logprob, one.top[: requests[i].sampling.logprobs])]
            for i, one in zip(asking, found)
        }

    def _tell(self, request: Request, output: Output) -> None:
        """Fill in text and finish of an output whose tokens the request has got."""
        sampling = request.sampling
        text = self._texts.get(request.id)
        if text is None:
            text = self._texts[request.id] = OutputText(self.tokenizer, sampling.stop)
        ends: Finish | None = None
        for token in output.tokens:
            is_stop = not sampling.ignore_stop and (token in self.tokenizer.stop_ids or token in sampling.stop_ids)
            if not is_stop:
                output.text += text.push(token)
            if is_stop or text.stopped:
                ends = "stop"
        if ends is None and request.room == 0:
            ends = "length"
        if ends:
            output.text += text.finish()
            output.finish = ends
            self._end(request)

    def _end(self, request: Request) -> None:
        del self._requests[request.id]
        self._texts.pop(request.id, None)
        self._scheduler.remove(request)

    # Whole jobs

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
        At most `batch` are under way at a time.
        """
        for prompt in prompts:
            self._check(prompt, sampling)
        jobs = iter([(prompt, first + i * n + j) for i, prompt in enumerate(prompts) for j in range(n)])
        place: dict[int, int] = {}
        done: list[list[int]] = [[] for _ in range(len(prompts) * n)]
        going = 0
        try:
            while True:
                while going < batch and (job := next(jobs, None)) is not None:
                    place[self.add(job[0], sampling, job[1])] = job[1] - first
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


class Generators(Sequence[np.random.Generator]):
    """The requests' generators, each made when it is first used: greedy requests need none."""

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def __getitem__(self, place: int) -> np.random.Generator:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._requests[place].generator


def default_blocks(model: Llama, rows: int) -> int:
    """Blocks for `rows` requests of the longest context, within a quarter of the memory that is free."""
    weight = model.embed_tokens.weight
    free = torch.cuda.mem_get_info(weight.device)[0] if weight.is_cuda else psutil.virtual_memory().available
    most = free // 4 // block_bytes(model.config, weight.dtype)
    return max(1, min(rows * blocks_for(model.config.max_seq_len), int(most)))
