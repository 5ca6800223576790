"""/v1/completions: prompts as text or tokens, many at once, with log-probabilities of the output and of the prompt.

This is what evaluation harnesses use: with `echo` and `logprobs` every token of the prompt and of the output is told,
the token that ended the output included.
"""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from puna.infer.engine import Output, TokenLogprob
from puna.serve.errors import ApiError, dump
from puna.serve.prompts import check_bias, prompt_ids
from puna.serve.requests import CompletionRequest, sampling_of
from puna.serve.served import EventStream, Served, find, unless_gone, usage
from puna.serve.worker import Continuation, Job

router = APIRouter()


@router.post("/v1/completions")
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continuations of prompts; with `echo`, after the prompts themselves."""
    served = find(request, body.model)
    body.check_stream()
    check_bias(served, body.logit_bias)
    n = body.n or 1
    if body.best_of not in (None, n):
        raise ApiError("best_of other than n is not supported; ask for n completions and choose", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens = 0 leaves nothing to tell but the prompt; set echo or ask for tokens", param="echo")
    prompts = await prompt_ids(served, body.prompt, body.add_special_tokens)
    sequences = []
    for place, prompt in enumerate(prompts):
        # The prompt's log-probabilities come with the first token, which is then left out.
        room = max(served.room(len(prompt), body.max_tokens), 1)
        prompt_logprobs = body.logprobs if body.echo else None
        sampling = sampling_of(
            body, room, json_schema=body.json_schema, logprobs=body.logprobs, prompt_logprobs=prompt_logprobs,
            speculate=served.speculate,
        )  # fmt: skip
        sequences += [Continuation(prompt, sampling, place * n + i) for i in range(n)]
    job = await served.worker.submit(sequences)
    choices = [TextChoice(served, sequence.prompt, body) for sequence in sequences]
    reply = CompletionReply(served, request.state.id, choices, sum(map(len, prompts)))
    if body.stream:
        return EventStream(reply.events(job, body.include_usage), job)
    return await unless_gone(request, reply.whole(job))


class TextChoice:
    """One continuation, put together from the engine's outputs."""

    def __init__(self, served: Served, prompt: Sequence[int], body: CompletionRequest) -> None:
        self._served, self._prompt = served, prompt
        self._echo, self._logprobs, self._silent = bool(body.echo), body.logprobs is not None, body.max_tokens == 0
        self._special = set(served.tokenizer.special.values())
        self._decoder, self._offset = served.tokenizer.stream_decoder(), 0
        self.pieces: list[dict[str, Any]] = []
        self.generated = self.cached = 0
        self.finish: str | None = None

    def take(self, output: Output) -> dict[str, Any]:
        """What another output adds: its text, and log-probabilities or None."""
        entries: list[TokenLogprob | None] = []
        text = ""
        if self._echo and not self.pieces:
            text = self._served.tokenizer.decode(self._prompt, skip_special=True)
            entries += output.prompt_logprobs or []
        if not self._silent:
            text += output.text
            entries += output.logprobs or []
            self.generated += len(output.tokens)
        self.cached = max(self.cached, output.cached)
        self.finish = "length" if output.finish and self._silent else output.finish
        piece = {"text": text, "logprobs": self._told(entries) if self._logprobs else None}
        self.pieces.append(piece)
        return piece

    def whole(self) -> dict[str, Any]:
        text = "".join(piece["text"] for piece in self.pieces)
        if not self._logprobs:
            return {"text": text, "logprobs": None}
        keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        parts = [piece["logprobs"] for piece in self.pieces]
        return {"text": text, "logprobs": {key: [item for part in parts for item in part[key]] for key in keys}}

    def _told(self, entries: Sequence[TokenLogprob | None]) -> dict[str, Any]:
        served = self._served
        told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            # Only the first token of a prompt, which nothing comes before, has none.
            token = self._prompt[0] if entry is None else entry.token
            best = None if entry is None else served.best(entry)
            told["tokens"].append(served.token_text(token))
            told["token_logprobs"].append(best and best[token])
            told["top_logprobs"].append(best and {served.token_text(i): logprob for i, logprob in best.items()})
            told["text_offset"].append(self._offset)
            if token not in self._special:
                self._offset += len(self._decoder.push(token))
        return told


class CompletionReply:
    """The reply to one request: some continuations, which one job fills."""

    def __init__(self, served: Served, name: str, choices: list[TextChoice], prompt: int) -> None:
        self.served, self.choices, self.prompt = served, choices, prompt
        self.head = {
            "id": f"cmpl-{name}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    async def whole(self, job: Job) -> dict[str, Any]:
        with job:
            async for place, output in job:
                self._checked(place, output)
        choices = [
            {"index": index, **choice.whole(), "finish_reason": choice.finish}
            for index, choice in enumerate(self.choices)
        ]
        return {**self.head, "choices": choices, "usage": self.usage()}

    async def events(self, job: Job, include_usage: bool) -> AsyncIterator[str]:
        more: dict[str, Any] = {"usage": None} if include_usage else {}
        async for place, output in job:
            piece = self._checked(place, output)
            finish = self.choices[place].finish
            if piece["text"] or piece["logprobs"] or finish:
                yield self._event({**more, "choices": [{"index": place, **piece, "finish_reason": finish}]})
        if include_usage:
            yield self._event({"choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"

    def usage(self) -> dict[str, Any]:
        generated, cached = (sum(getattr(choice, name) for choice in self.choices) for name in ("generated", "cached"))
        return usage(self.prompt, generated, min(cached, self.prompt))

    def _checked(self, place: int, output: Output) -> dict[str, Any]:
        if output.finish == "abort":
            raise ApiError("the engine gave this request up", 500)
        return self.choices[place].take(output)

    def _event(self, body: dict[str, Any]) -> str:
        return f"data: {dump({**self.head, **body})}\n\n"
