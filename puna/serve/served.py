"""A model that is being served, and what all endpoints do with one."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

import puna
from puna.infer.cache import BLOCK
from puna.infer.engine import Engine, TokenLogprob
from puna.serve.errors import ApiError, JsonResponse, dump, error_body
from puna.serve.metrics import Metrics
from puna.serve.requests import Speculate
from puna.serve.worker import Job, Worker
from puna.text.chat import Profile
from puna.text.tokenizer import Tokenizer

CLIENT_GONE = 499  # nginx's status for it; nobody reads the reply
BUILT_WITH_LLAMA = "Built with Llama"


class Served:
    """An engine under the name by which clients ask for it.

    Attributes:
        speculate: how outputs are guessed ahead, which changes their speed alone.
        llama: the release of Meta's Llama that the model descends from, None where its licence is not there.
        max_len: tokens that prompt and output may have together.
        fingerprint: changes with the configuration, the tokenizer and puna's version.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        metrics: Metrics,
        profile: Profile = "hf",
        most: int = 256,
        speculate: Speculate = "off",
        llama: str | None = None,
    ) -> None:
        self.name, self.engine, self.llama = name, engine, llama
        self.speculate: Speculate = speculate
        self.profile: Profile = profile
        self.tokenizer: Tokenizer = engine.tokenizer
        self.max_len = min(engine.model.config.max_seq_len, engine.total_blocks * BLOCK)
        self.metrics = metrics.watch(name, engine)
        self.worker = Worker(engine, self.metrics, most)
        self.created = int(time.time())
        digest = hashlib.sha256(f"{engine.model.config} {self.tokenizer.fingerprint()} {puna.__version__}".encode())
        self.fingerprint = f"puna_{digest.hexdigest()[:12]}"

    def room(self, prompt: int, asked: int | None) -> int:
        """Tokens to generate: what was asked, or all that fit. ApiError when they do not."""
        left = self.max_len - prompt
        if left < 1 or (asked or 0) > left:
            what = f"{prompt:,} tokens of prompt" + (f" and {asked:,} to generate" if asked else "")
            raise ApiError(
                f"{what} exceed this model's {self.max_len:,}; shorten one of them", code="context_length_exceeded"
            )
        return left if asked is None else asked

    def check_tokens(self, tokens: Iterable[int], param: str) -> None:
        size = self.tokenizer.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise ApiError(f"token {token} is not in this model's vocabulary of {size:,}", param=param)

    def token_text(self, token: int) -> str:
        """A token as text; one that is no whole characters in OpenAI's form bytes:\\xe2\\x80, so that no two tokens
        have the same."""
        data = self.tokenizer.decode_bytes([token])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def best(self, entry: TokenLogprob) -> dict[int, float]:
        """The likeliest tokens at a place and the chosen one, with log-probabilities that JSON can hold."""
        found = {token: finite(logprob) for token, logprob in entry.top}
        return found | {entry.token: finite(entry.logprob)}


def finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # as OpenAI writes what is impossible


def find(request: Request, name: str | None) -> Served:
    """The model that a request names; without a name, the only one."""
    models: dict[str, Served] = request.app.state.models
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    if name is not None and name in models:
        return models[name]
    message = f"there is no model {name!r}; this server has {', '.join(models)}"
    raise ApiError(message, 404, param="model", code="model_not_found")


def usage(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


async def unless_gone(request: Request, answer: Awaitable[Any]) -> Response:
    """The answer as JSON; it is cancelled when the client leaves."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return JsonResponse(answering.result()) if answering.done() else Response(status_code=CLIENT_GONE)
    finally:
        answering.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events of a job, which is closed however the stream ends."""

    def __init__(self, events: AsyncIterator[str], job: Job) -> None:
        super().__init__(_or_error(events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job = job

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.close()


async def _or_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """An error after the first event can only be told as an event."""
    try:
        async for event in events:
            yield event
    except ApiError as error:
        yield f"data: {dump(error.body)}\n\n"
    except Exception:
        yield f"data: {dump(error_body('the server failed; its log says why', 500))}\n\n"
        raise
