"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from puna.errors import PunaError

log = logging.getLogger("puna.serve")

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 500: "server_error"}


class ApiError(Exception):
    """An error for the client: HTTP status, message, the parameter at fault and OpenAI's code for it."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = error_body(message, status, param, code)


class JsonResponse(Response):
    """JSON in ASCII: a lone surrogate that a client sent goes back as it came instead of failing to encode."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content).encode("ascii")


def dump(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Make the application answer every error in this form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return JsonResponse(error.body, error.status, error.headers)

    @app.exception_handler(PunaError)
    async def mendable(request: Request, error: PunaError) -> Response:
        return JsonResponse(error_body(str(error), 400), 400)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, param = describe(error.errors())
        return JsonResponse(error_body(message, 400, param), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JsonResponse(error_body(message, error.status_code, code=code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return JsonResponse(error_body("the server failed; its log says why, beside the request's id", 500), 500)


def describe(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """The first of pydantic's errors as a message, and the parameter that it is about."""
    # Of a union each branch reports; the deepest complaint is about the branch that was meant.
    error = max(errors, key=lambda error: len(error["loc"]))
    place = [str(part) for part in error["loc"] if part != "body"]
    param = ".".join(place) or None
    if error["type"] == "extra_forbidden":
        return f"{param} is not a parameter that this server knows; leave it out", param
    if error["type"] == "json_invalid":
        return f"the body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}", None
    given = "" if error["type"] == "missing" else f" (given: {error.get('input')!r:.80})"
    return f"{param or 'the body'}: {error['msg']}{given}", param
