"""/v1/chat/completions: whole and streamed from the same deltas, so that both say the same."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response

from puna.infer.engine import Output, TokenLogprob
from puna.serve.errors import ApiError, dump
from puna.serve.prompts import chat_of, chat_prompt, check_bias, grammar, read_tools, wants_calls
from puna.serve.requests import ChatRequest, sampling_of
from puna.serve.served import EventStream, Served, find, finite, unless_gone, usage
from puna.serve.worker import Continuation, Job
from puna.text.chat_stream import CallArguments, CallStart, CallStream, Delta

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """An answer to a chat; with `stream`, as it is written."""
    served = find(request, body.model)
    body.check_stream()
    check_bias(served, body.logit_bias)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs = true", param="top_logprobs")
    tools = read_tools(body.tools)
    schema = grammar(tools, body.tool_choice, body.response_format)
    calls = wants_calls(body, tools)
    prompt = await chat_prompt(served, chat_of(body.messages, tools if calls else read_tools(None)))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    room = served.room(len(prompt), body.most_tokens)
    sampling = sampling_of(body, room, json_schema=schema, logprobs=logprobs, speculate=served.speculate)
    n = body.n or 1
    job = await served.worker.submit([Continuation(prompt, sampling, number) for number in range(n)])
    most_calls = 1 if body.parallel_tool_calls is False else None
    choices = [Choice(served, tools.names if calls else None, most_calls) for _ in range(n)]
    reply = ChatReply(served, request.state.id, choices, len(prompt), bool(body.logprobs))
    if body.stream:
        return EventStream(reply.events(job, body.include_usage), job)
    return await unless_gone(request, reply.whole(job))


class Choice:
    """One answer, put together from the engine's outputs.

    Args:
        names: the tools whose calls are looked for; None when the answer is text whatever it looks like.
        most_calls: after these the answer ends.
    """

    def __init__(self, served: Served, names: Sequence[str] | None = None, most_calls: int | None = None) -> None:
        self._served, self._most_calls = served, most_calls
        self._calls = None if names is None else CallStream(names, served.tokenizer)
        self.content = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: str | None = None
        self.generated = self.cached = 0

    def take(self, output: Output) -> Iterator[Delta]:
        """Deltas of another output; nothing more once the answer has ended."""
        if self.finish:
            return
        self.generated += len(output.tokens)
        self.cached = max(self.cached, output.cached)
        stops = self._served.tokenizer.stop_ids if output.finish == "stop" else ()
        self.logprobs += [entry for entry in output.logprobs or () if entry.token not in stops]
        for delta in self._deltas(output):
            if isinstance(delta, CallStart):
                if self._most_calls is not None and delta.index >= self._most_calls:
                    self.finish = "tool_calls"
                    return
                self.calls.append({"id": f"call_{uuid4().hex[:24]}", "name": delta.name, "arguments": ""})
            elif isinstance(delta, CallArguments):
                self.calls[delta.index]["arguments"] += delta.text
            else:
                self.content += delta
            if delta != "":
                yield delta
        if output.finish:
            self.finish = "tool_calls" if self.calls and output.finish == "stop" else output.finish

    def _deltas(self, output: Output) -> Iterator[Delta]:
        if self._calls is None:
            yield output.text
            return
        yield from self._calls.push(output.text, output.tokens)
        if output.finish:
            yield from self._calls.finish(cut=output.finish == "length")

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message["content"] = self.content or None
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {k: call[k] for k in ("name", "arguments")}}
                for call in self.calls
            ]
        return message

    def spoken(self, delta: Delta) -> dict[str, Any]:
        """A delta as OpenAI streams it."""
        if isinstance(delta, str):
            return {"content": delta}
        if isinstance(delta, CallStart):
            function = {"name": delta.name, "arguments": ""}
            call = {"index": delta.index, "id": self.calls[delta.index]["id"], "type": "function", "function": function}
        else:
            call = {"index": delta.index, "function": {"arguments": delta.text}}
        return {"tool_calls": [call]}


class ChatReply:
    """The reply to one request: some choices, which one job fills."""

    def __init__(self, served: Served, name: str, choices: list[Choice], prompt: int, logprobs: bool) -> None:
        self.served, self.choices, self.prompt, self.logprobs = served, choices, prompt, logprobs
        self.head = {"id": f"chatcmpl-{name}", "created": int(time.time()), "model": served.name}

    async def deltas(self, job: Job) -> AsyncIterator[tuple[int, list[Delta]]]:
        """(choice, its deltas) until all choices have ended."""
        async for index, output in job:
            yield index, list(self.choices[index].take(output))
            if all(choice.finish for choice in self.choices):
                break
        if any(choice.finish == "abort" for choice in self.choices):
            raise ApiError("the engine gave this request up", 500)

    async def whole(self, job: Job) -> dict[str, Any]:
        with job:
            async for _ in self.deltas(job):
                pass
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": self._told(choice.logprobs),
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(self.choices)
        ]
        fingerprint = {"system_fingerprint": self.served.fingerprint}
        return {**self.head, "object": "chat.completion", **fingerprint, "choices": choices, "usage": self.usage()}

    async def events(self, job: Job, include_usage: bool) -> AsyncIterator[str]:
        """Chunks: the role, the deltas, why it ended; then the usage, if asked for, without a choice."""
        for index in range(len(self.choices)):
            yield self._event(index, {"role": "assistant", "content": "", "refusal": None}, include_usage)
        ended = set()
        async for index, deltas in self.deltas(job):
            choice = self.choices[index]
            for delta in deltas:
                yield self._event(index, choice.spoken(delta), include_usage)
            if choice.finish and index not in ended:
                ended.add(index)
                yield self._event(index, {}, include_usage, choice.finish)
        if include_usage:
            yield self._chunk([], usage=self.usage())
        yield "data: [DONE]\n\n"

    def usage(self) -> dict[str, Any]:
        generated = sum(choice.generated for choice in self.choices)
        return usage(self.prompt, generated, self.choices[0].cached)

    def _event(self, index: int, delta: dict[str, Any], include_usage: bool, finish: str | None = None) -> str:
        choice = self.choices[index]
        # Tokens that became no delta yet, inside a call for example, are told with the next.
        told, choice.logprobs = choice.logprobs, []
        body = {"index": index, "delta": delta, "logprobs": self._told(told) if told else None, "finish_reason": finish}
        return self._chunk([body], **({"usage": None} if include_usage else {}))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        head = {**self.head, "object": "chat.completion.chunk", "system_fingerprint": self.served.fingerprint}
        return f"data: {dump({**head, 'choices': choices, **more})}\n\n"

    def _told(self, entries: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {"content": [told_logprob(self.served, entry) for entry in entries], "refusal": None}


def told_logprob(served: Served, entry: TokenLogprob) -> dict[str, Any]:
    """A token's log-probability in the form of the chat API."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        data = served.tokenizer.decode_bytes([token])
        return {"token": served.token_text(token), "logprob": finite(logprob), "bytes": list(data)}

    top = [one(token, logprob) for token, logprob in entry.top]
    return {**one(entry.token, entry.logprob), "top_logprobs": top}
