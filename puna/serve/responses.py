"""/v1/responses: OpenAI's newer form of a chat, without its memory: a client sends the whole conversation each time."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import Response

from puna.serve.chat import Choice, told_logprob
from puna.serve.errors import ApiError, dump
from puna.serve.prompts import chat_of, chat_prompt, grammar, read_tools
from puna.serve.requests import sampling_of
from puna.serve.responses_requests import ResponsesRequest
from puna.serve.served import EventStream, Served, find, unless_gone
from puna.serve.worker import Continuation, Job
from puna.text.chat_stream import CallStart, Delta

router = APIRouter()
Event = dict[str, Any]


@router.post("/v1/responses")
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """An answer as a list of items: messages and calls of tools; with `stream`, as it is written."""
    served = find(request, body.model)
    tools = read_tools(body.chat_tools())
    schema = grammar(tools, body.chat_choice(), body.chat_format())
    calls = bool(tools.names) and body.tool_choice != "none"
    prompt = await chat_prompt(served, chat_of(body.messages(), tools if calls else read_tools(None)))
    logprobs = body.top_logprobs or 0 if body.include or body.top_logprobs is not None else None
    room = served.room(len(prompt), body.max_output_tokens)
    sampling = sampling_of(body, room, json_schema=schema, logprobs=logprobs, speculate=served.speculate)
    job = await served.worker.submit([Continuation(prompt, sampling)])
    most_calls = 1 if body.parallel_tool_calls is False else None
    reply = ResponseReply(served, body, len(prompt), Choice(served, tools.names if calls else None, most_calls))
    if body.stream:
        return EventStream(reply.told(job), job)
    return await unless_gone(request, reply.whole(job))


class ResponseReply:
    """One response: its items grow by the deltas of a choice, and every change is an event."""

    def __init__(self, served: Served, body: ResponsesRequest, prompt: int, choice: Choice) -> None:
        self.served, self.prompt, self.choice = served, prompt, choice
        asked = body.model_dump(exclude_none=True, by_alias=True)
        self.response: dict[str, Any] = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": served.name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}, **asked.get("text", {})},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools", []),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    async def whole(self, job: Job) -> dict[str, Any]:
        with job:
            async for _ in self.events(job):
                pass
        return self.response

    async def told(self, job: Job) -> AsyncIterator[str]:
        """The events, numbered, as they are sent."""
        number = 0
        try:
            async for event in self.events(job):
                yield f"event: {event['type']}\ndata: {dump({**event, 'sequence_number': number})}\n\n"
                number += 1
        except ApiError as error:
            body = {"type": "error", **error.body["error"], "sequence_number": number}
            yield f"event: error\ndata: {dump(body)}\n\n"

    async def events(self, job: Job) -> AsyncIterator[Event]:
        yield {"type": "response.created", "response": self.response}
        yield {"type": "response.in_progress", "response": self.response}
        async for _, output in job:
            for delta in self.choice.take(output):
                for event in self._grow(delta):
                    yield event
            if self.choice.finish:
                break
        if self.choice.finish == "abort":
            raise ApiError("the engine gave this request up", 500)
        cut = self.choice.finish == "length"
        if not self.response["output"]:
            for event in self._open_message():
                yield event
        for event in self._close(cut):
            yield event
        self.response["status"] = "incomplete" if cut else "completed"
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        generated, cached = self.choice.generated, self.choice.cached
        self.response["usage"] = {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": self.prompt - cached},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + generated,
        }
        yield {"type": f"response.{self.response['status']}", "response": self.response}

    @property
    def _place(self) -> int:
        return len(self.response["output"]) - 1

    @property
    def _item(self) -> dict[str, Any] | None:
        """The item that is being written."""
        output = self.response["output"]
        return output[-1] if output and output[-1]["status"] == "in_progress" else None

    def _grow(self, delta: Delta) -> Iterator[Event]:
        item = self._item
        if isinstance(delta, str):
            if item is None or item["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            part = self.response["output"][-1]["content"][0]
            part["text"] += delta
            logprobs = self._logprobs()
            part["logprobs"] += logprobs
            yield self._event("response.output_text.delta", content_index=0, delta=delta, logprobs=logprobs)
        elif isinstance(delta, CallStart):
            yield from self._close()
            call = {"id": f"fc_{uuid4().hex}", "type": "function_call", "status": "in_progress"}
            call |= {"call_id": self.choice.calls[delta.index]["id"], "name": delta.name, "arguments": ""}
            self.response["output"].append(call)
            yield {"type": "response.output_item.added", "output_index": self._place, "item": dict(call)}
        elif item is not None:
            item["arguments"] += delta.text
            yield self._event("response.function_call_arguments.delta", delta=delta.text)

    def _open_message(self) -> Iterator[Event]:
        head = {"id": f"msg_{uuid4().hex}", "type": "message", "status": "in_progress", "role": "assistant"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield {
            "type": "response.output_item.added",
            "output_index": self._place + 1,
            "item": {**head, "content": []},
        }
        self.response["output"].append({**head, "content": [part]})
        yield self._event("response.content_part.added", content_index=0, part={**part})

    def _close(self, cut: bool = False) -> Iterator[Event]:
        """The end of the item that is being written, if there is one."""
        item = self._item
        if item is None:
            return
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self._logprobs()
            yield self._event(
                "response.output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"]
            )
            yield self._event("response.content_part.done", content_index=0, part=part)
        else:
            yield self._event("response.function_call_arguments.done", name=item["name"], arguments=item["arguments"])
        item["status"] = "incomplete" if cut else "completed"
        yield {"type": "response.output_item.done", "output_index": self._place, "item": item}

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": kind, "item_id": self.response["output"][-1]["id"], "output_index": self._place, **more}

    def _logprobs(self) -> list[dict[str, Any]]:
        """Those of tokens that have become text since the last delta."""
        entries, self.choice.logprobs = self.choice.logprobs, []
        return [told_logprob(self.served, entry) for entry in entries]
