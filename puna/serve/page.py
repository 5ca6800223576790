"""What the chat page asks besides OpenAI's API: what there is, and tools run on this side (`puna serve --tools`)."""

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from puna.serve.errors import ApiError, JsonResponse
from puna.serve.requests import Body
from puna.serve.served import BUILT_WITH_LLAMA, Served, unless_gone
from puna.text.message import ToolCall
from puna.tools import Toolbox, ToolResult

router = APIRouter(prefix="/page")
MOST_CONVERSATIONS, MOST_CALLS = 32, 16


class PageCall(Body):
    name: str
    arguments: dict[str, Any]


class ToolsRequest(Body):
    calls: Annotated[list[PageCall], Field(min_length=1, max_length=MOST_CALLS)]
    conversation: Annotated[str, Field(min_length=1, max_length=100)]


@router.get("/config")
async def config(request: Request) -> Response:
    """Models, the tools that run here in the form that requests take them, the longest context, and a notice."""
    models: dict[str, Served] = request.app.state.models
    conversations: Conversations = request.app.state.conversations
    return JsonResponse(
        {
            "models": list(models),
            "tools": conversations.offered(),
            "max_len": min(model.max_len for model in models.values()),
            "notice": BUILT_WITH_LLAMA if any(model.llama for model in models.values()) else "",
        }
    )


@router.post("/tools")
async def run_tools(body: ToolsRequest, request: Request) -> Response:
    """Run the calls of a message, side by side; results in their order."""
    conversations: Conversations = request.app.state.conversations
    calls = [ToolCall(call.name, call.arguments) for call in body.calls]
    return await unless_gone(request, conversations.run(body.conversation, calls))


def told(result: ToolResult) -> dict[str, Any]:
    images = [base64.b64encode(image).decode() for image in result.images]
    return {"text": result.text, "images": images, "seconds": result.seconds, "error": result.error}


class Conversations:
    """A toolbox for each conversation; the one that was idle for longest makes room for a new one."""

    def __init__(self, tools: Toolbox | None) -> None:
        self._tools = tools
        self._open: OrderedDict[str, tuple[Toolbox, asyncio.Lock]] = OrderedDict()

    def offered(self) -> list[dict[str, Any]]:
        if self._tools is None:
            return []
        return [*(self._tools.schemas() or ()), *({"type": name} for name in self._tools.builtins() or ())]

    async def run(self, conversation: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """Results of calls; those of one conversation wait for each other. ApiError without tools or a free place."""
        if self._tools is None:
            raise ApiError("this server runs no tools; start it with --tools", 403)
        if conversation not in self._open:
            await self._make_room()
        if conversation not in self._open:
            self._open[conversation] = self._tools.session(), asyncio.Lock()
        self._open.move_to_end(conversation)
        toolbox, lock = self._open[conversation]
        async with lock:
            running = asyncio.ensure_future(asyncio.to_thread(toolbox.run, calls))
            try:
                results = await asyncio.shield(running)
            except asyncio.CancelledError:  # the client has left
                toolbox.interrupt()
                await asyncio.wait({running})
                raise
        return {"results": [told(result) for result in results]}

    async def _make_room(self) -> None:
        if len(self._open) < MOST_CONVERSATIONS:
            return
        idle = next((name for name, (_, lock) in self._open.items() if not lock.locked()), None)
        if idle is None:
            raise ApiError("all conversations are running tools; try again later", 429, headers={"Retry-After": "5"})
        toolbox, _ = self._open.pop(idle)
        await asyncio.to_thread(toolbox.close)

    def close(self) -> None:
        for toolbox, _ in self._open.values():
            toolbox.close()
        self._open.clear()
        if self._tools is not None:
            self._tools.close()
