"""The application: endpoints, the chat page, one worker for each model."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

import puna
from puna.serve import basics, chat, completions, embeddings, errors, page, responses
from puna.serve.guard import Access, Guard
from puna.serve.metrics import Metrics
from puna.serve.served import Served
from puna.tools import Toolbox

PAGE = Path(__file__).parent / "page"
ERRORS: dict[int | str, str] = {
    400: "The request is wrong; the message says where.",
    401: "The key is missing or wrong.",
    403: "Not from there.",
    404: "There is no such model.",
    413: "The body is too large.",
    429: "The server is full; Retry-After says when to try again.",
    "default": "Any other error, in the same form.",
}


def create_app(models: Sequence[Served], metrics: Metrics, access: Access, tools: Toolbox | None = None) -> Guard:
    """The ASGI application that serves `models`; `tools` may be run for the chat page."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for model in models:
            model.worker.start()
        yield
        for model in models:
            model.worker.stop()
        conversations.close()

    # No /docs: their scripts would come from elsewhere.
    app = FastAPI(title="puna", version=puna.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    conversations = page.Conversations(tools)
    app.state.models = {model.name: model for model in models}
    app.state.metrics, app.state.conversations = metrics, conversations
    errors.install(app)
    described: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in ERRORS.items()}
    for part in (chat, completions, responses, embeddings, basics, page):
        app.include_router(part.router, responses=described)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return Guard(app, access, metrics, is_page)


def is_page(path: str) -> bool:
    """Whether a path is the chat page's or one of its files, which need no key."""
    name = path.strip("/") or "index.html"
    return (PAGE / name).is_file() and ".." not in name
