"""Tools of any server of the Model Context Protocol (modelcontextprotocol.io, revision 2025-06-18).

A client of what tools need: initialize, tools/list and tools/call over standard input and output or streamable HTTP.
The official package does more (resources, prompts, sampling, OAuth) and brings a web server and cryptography with it.
"""

import base64
import json
import queue
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

import puna
from puna.errors import PunaError
from puna.tools.functions import Tool, ToolResult

PROTOCOL = "2025-06-18"
START_SECONDS, CALL_SECONDS, END_SECONDS = 60.0, 120.0, 2.0
"""Of the first answer, which may install the server; of a call; from closing a server's input to its end by force."""


class Transport(Protocol):
    """Carries one request at a time for each thread."""

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The response to a request, by its id; PunaError if none comes."""
        ...

    def notify(self, message: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class McpServer:
    """A connection to a server, `command` or a URL that starts with http; its tools as ours.

    Raises:
        PunaError: the server does not start, does not answer, or has no tools.
    """

    def __init__(self, target: str) -> None:
        self._numbers, self._lock = 0, threading.Lock()
        self.name = target
        self._transport: Transport = Http(target) if target.startswith(("http://", "https://")) else Stdio(target)
        try:
            about = {"name": "puna", "version": puna.__version__}
            parameters = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": about}
            version = self._ask("initialize", parameters, START_SECONDS).get("protocolVersion", PROTOCOL)
            if isinstance(self._transport, Http):
                self._transport.headers["MCP-Protocol-Version"] = str(version)
            self._transport.notify({"jsonrpc": "2.0", "method": "notifications/initialized"})
            self.tools = [self._tool(one) for one in self._list()]
        except BaseException:
            self._transport.close()
            raise
        if not self.tools:
            self._transport.close()
            raise PunaError(f"mcp:{target}: the server has no tools")

    def close(self) -> None:
        self._transport.close()

    def _ask(self, method: str, parameters: dict[str, Any], seconds: float = CALL_SECONDS) -> dict[str, Any]:
        with self._lock:
            self._numbers += 1
            number = self._numbers
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}
        response = self._transport.request(message, seconds)
        if "error" in response:
            raise PunaError(f"mcp:{self.name}: {response['error'].get('message', response['error'])}")
        return response.get("result") or {}

    def _list(self) -> Iterator[dict[str, Any]]:
        parameters: dict[str, Any] = {}
        while True:
            page = self._ask("tools/list", parameters)
            yield from page.get("tools", [])
            if not page.get("nextCursor"):
                return
            parameters = {"cursor": page["nextCursor"]}

    def _tool(self, one: dict[str, Any]) -> Tool:
        name = one["name"]

        def call(**arguments: Any) -> ToolResult:
            return _result(self._ask("tools/call", {"name": name, "arguments": arguments}))

        parameters = one.get("inputSchema") or {"type": "object", "properties": {}}
        description = one.get("description") or one.get("title") or name
        schema = {"name": name, "description": description, "parameters": parameters}
        return Tool(call, {"type": "function", "function": schema})


def _result(reply: dict[str, Any]) -> ToolResult:
    """Texts and PNG images of an answer; other kinds are named."""
    texts, images = [], []
    for part in reply.get("content") or []:
        resource = part.get("resource") or {}
        if part.get("type") == "text":
            texts.append(part["text"])
        elif part.get("type") == "image" and part.get("mimeType") == "image/png":
            images.append(base64.b64decode(part["data"]))
        elif "text" in resource:
            texts.append(resource["text"])
        else:
            texts.append(f"[{part.get('type')} {part.get('uri') or part.get('mimeType') or ''}]")
    if not texts and reply.get("structuredContent") is not None:
        texts = [json.dumps(reply["structuredContent"], ensure_ascii=False)]
    failed = bool(reply.get("isError"))
    return ToolResult("error: " * failed + "\n".join(texts), images, error=failed)


class Stdio:
    """A server that is a program: one JSON message a line on its standard input and output."""

    def __init__(self, command: str) -> None:
        self.name = command
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(shlex.split(command), stdin=pipe, stdout=pipe, stderr=self._log)
        except (OSError, ValueError, IndexError) as error:
            self._log.close()
            raise PunaError(f"mcp:{command}: {error}; give a command that starts a server, or a URL") from None
        self._waiting: dict[Any, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="mcp", daemon=True)
        self._reader.start()

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        answer: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._waiting[message["id"]] = answer
        try:
            self.notify(message)
            if not self._reader.is_alive():
                answer.put(None)
            response = answer.get(timeout=seconds)
        except queue.Empty:
            self.notify({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": message["id"]}})
            raise PunaError(f"mcp:{self.name}: no answer to {message['method']} within {seconds:.0f} s") from None
        finally:
            self._waiting.pop(message["id"], None)
        if response is None:
            raise PunaError(f"mcp:{self.name}: the server has ended{self._said()}")
        return response

    def notify(self, message: dict[str, Any]) -> None:
        assert self._process.stdin
        with self._lock, suppress(BrokenPipeError, ValueError):  # it has ended: whoever waits for an answer is told
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        for end in (lambda: None, self._process.terminate, self._process.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
                break
        self._reader.join(END_SECONDS)  # a child of the server may hold its output open
        if not self._reader.is_alive():
            self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a server that prints what it should log
            if not isinstance(message, dict):
                continue
            if "method" in message and "id" in message:
                self.notify(_answer(message))
            elif waiting := self._waiting.get(message.get("id")):
                waiting.put(message)
        for waiting in list(self._waiting.values()):
            waiting.put(None)

    def _said(self) -> str:
        """The last line that the server logged."""
        with suppress(ValueError):
            self._log.seek(0)
            lines = self._log.read().decode("utf-8", "replace").split("\n")
            return next((f": {line.strip()[:200]}" for line in reversed(lines) if line.strip()), "")
        return ""


class Http:
    """A server behind a URL ("streamable HTTP"): each message is posted, the answer is JSON or a stream of events."""

    def __init__(self, url: str) -> None:
        import httpx

        self.url, self._client, self._error = url, httpx.Client(), httpx.HTTPError
        self.headers = {"Accept": "application/json, text/event-stream"}

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            with self._client.stream("POST", self.url, json=message, headers=self.headers, timeout=seconds) as reply:
                if reply.status_code != 200:
                    text = reply.read().decode("utf-8", "replace").strip()[:200]
                    raise PunaError(f"mcp:{self.url}: HTTP {reply.status_code}: {text}")
                if session := reply.headers.get("Mcp-Session-Id"):
                    self.headers["Mcp-Session-Id"] = session
                if not reply.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return json.loads(reply.read())
                for event in _events(reply.iter_lines()):
                    if "method" in event and "id" in event:
                        self.notify(_answer(event))
                    elif event.get("id") == message["id"]:
                        return event
        except (self._error, ValueError) as error:
            raise PunaError(f"mcp:{self.url}: {type(error).__name__}: {error}") from None
        raise PunaError(f"mcp:{self.url}: the stream ended without an answer to {message['method']}")

    def notify(self, message: dict[str, Any]) -> None:
        self._client.post(self.url, json=message, headers=self.headers, timeout=START_SECONDS)

    def close(self) -> None:
        if "Mcp-Session-Id" in self.headers:
            with suppress(self._error):
                self._client.delete(self.url, headers=self.headers, timeout=END_SECONDS)
        self._client.close()


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON messages of a stream of server-sent events."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Our response to a server's request: we are alive, and do nothing else for it."""
    answer = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "ping":
        return answer | {"result": {}}
    return answer | {"error": {"code": -32601, "message": f"puna does not offer {request['method']}"}}
