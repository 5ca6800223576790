"""What stands before every request: key, origin, size; a request id; headers, log and counts."""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from puna.serve.errors import ApiError, JsonResponse
from puna.serve.metrics import Metrics

log = logging.getLogger("puna.serve")
LOCAL = ("127.0.0.1", "localhost", "::1")
OPEN = ("/health",)
"""Besides the page's files, what can be had without the key."""
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Access:
    """Who may ask for what.

    Attributes:
        key: what clients must send as `Authorization: Bearer KEY`; None for anybody.
        local: answer only where the Host header names this machine, so that a page elsewhere on the web cannot reach
            a server without a key by pointing its own name here (DNS rebinding).
        most_bytes: the largest body.
    """

    key: str | None = None
    local: bool = True
    most_bytes: int = 32 * 2**20


class Guard:
    """ASGI middleware around the application. `pages` says which paths are the chat page's files."""

    def __init__(
        self, app: Callable[..., Awaitable[None]], access: Access, metrics: Metrics, pages: Callable[[str], bool]
    ) -> None:
        self.app, self.access, self.metrics, self.pages = app, access, metrics, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["id"] = name
        begun, status = time.monotonic(), 500

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {**HEADERS, "x-request-id": name}
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in added.items())]
            await send(message)

        try:
            await self._answer(scope, headers, receive, send_with_headers)
        except Exception:
            log.exception("%s failed", name)  # the client has been told already
        finally:
            seconds = time.monotonic() - begun
            log.info("%s %s %r %d %.3f s", name, scope["method"], scope["path"], status, seconds)
            route = getattr(scope.get("route"), "path", None) or "other"
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(seconds)

    async def _answer(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        try:
            self._refuse(scope, headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = await self._read(headers, receive)
        except ApiError as error:
            await JsonResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refuse(self, scope: Scope, headers: dict[str, str]) -> None:
        """ApiError if the request may not be answered."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.access.local and _host(host) not in LOCAL:
            raise ApiError(f"this server answers to localhost only, not to {host!r}; give it an --api-key", 403)
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            raise ApiError(f"requests from pages of {origin!r} are not answered", 403)
        path = scope["path"]
        if self.access.key is not None and path not in OPEN and not self.pages(path):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not same(given.strip(), self.access.key):
                raise ApiError(
                    "send this server's key as Authorization: Bearer KEY",
                    401,
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )

    async def _read(self, headers: dict[str, str], receive: Receive) -> Receive:
        """The whole body, as if it were still to be received. ApiError when it is too large."""
        most = self.access.most_bytes
        too_large = ApiError(f"the body is larger than {most:,} bytes", 413, code="request_too_large")
        if headers.get("content-length", "").isdecimal() and int(headers["content-length"][:20]) > most:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ApiError("the body ended early", 400)
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > most:
                raise too_large
        whole: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return whole.pop() if whole else await receive()

        return again


def same(given: str, wanted: str) -> bool:
    """Whether two keys are equal, in a time that does not tell how much of them is."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, wanted))
    return hmac.compare_digest(*digests)


def _host(header: str) -> str:
    """The host of a Host header, without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
