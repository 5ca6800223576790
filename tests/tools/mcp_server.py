"""A small server of the Model Context Protocol for the tests, over standard input and output or HTTP.

It is written from the specification, not from puna's client. `python mcp_server.py [MODE]`: "" behaves, "dead" ends at
once with a message, "silent" never answers a call, "empty" has no tools.
"""

import base64
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    },
}
DRAW = {"name": "draw", "description": "A picture.", "inputSchema": {"type": "object", "properties": {}}}
FAIL = {"name": "fail", "inputSchema": {"type": "object"}}
WAIT = {
    "name": "wait",
    "description": "Answer late.",
    "inputSchema": {"type": "object", "properties": {"seconds": {"type": "number"}}},
}


def answer(request: dict[str, Any], mode: str = "") -> dict[str, Any] | None:
    """The response to a message, None to a notification."""
    method, parameters = request["method"], request.get("params", {})
    if "id" not in request:
        return None
    reply = {"jsonrpc": "2.0", "id": request["id"]}
    if method == "initialize":
        assert parameters["clientInfo"]["name"]
        server = {"name": "test", "version": "1"}
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
    elif method == "tools/list":
        pages = {None: ([ADD, DRAW], "more"), "more": ([FAIL, WAIT], None)}
        tools, cursor = ([], None) if mode == "empty" else pages[parameters.get("cursor")]
        result = {"tools": tools} | ({"nextCursor": cursor} if cursor else {})
    elif method == "tools/call" and parameters["name"] == "add":
        total = parameters["arguments"]["a"] + parameters["arguments"]["b"]
        result = {"content": [{"type": "text", "text": str(total)}], "structuredContent": {"sum": total}}
    elif method == "tools/call" and parameters["name"] == "draw":
        image = base64.b64encode(b"\x89PNG picture").decode()
        content = [{"type": "image", "data": image, "mimeType": "image/png"}, {"type": "resource_link", "uri": "x://y"}]
        result = {"content": content}
    elif method == "tools/call" and parameters["name"] == "wait":
        time.sleep(parameters["arguments"]["seconds"])
        result = {"content": [{"type": "text", "text": "late"}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": "it broke"}], "isError": True}
    else:
        return reply | {"error": {"code": -32601, "message": f"unknown method {method}"}}
    return reply | {"result": result}


def serve_stdio(mode: str) -> None:
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(message), flush=True)

    def respond(request: dict[str, Any]) -> None:
        reply = answer(request, mode)
        if reply and not (mode == "silent" and request["method"] == "tools/call"):
            say(reply)

    print("a line that is no message", flush=True)
    pinged = False
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message:  # the client's answer to the ping
            pinged = message == {"jsonrpc": "2.0", "id": "p", "result": {}}
            continue
        if message["method"] == "notifications/initialized":
            say({"jsonrpc": "2.0", "id": "p", "method": "ping"})
            continue
        if message["method"] == "tools/call" and not pinged:
            time.sleep(0.05)
        threading.Thread(target=respond, args=(message,)).start()


class HttpServer(ThreadingHTTPServer):
    """Sessions are asked for; odd requests are answered with JSON, even ones with events."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mcp"
        self.ended: list[str] = []
        self.answers: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert "application/json" in self.headers["Accept"]
        assert "text/event-stream" in self.headers["Accept"]
        if message.get("method") != "initialize" and self.headers.get("Mcp-Session-Id") != "s1":
            self._send(404, "text/plain", b"no such session")
            return
        if "method" not in message:
            self.server.answers.append(message)  # pyright: ignore[reportAttributeAccessIssue]
        reply = answer(message) if "method" in message else None
        if reply is None:
            self._send(202, "text/plain", b"")
        elif reply["id"] % 2:
            self._send(200, "application/json", json.dumps(reply).encode())
        else:
            ping = json.dumps({"jsonrpc": "2.0", "id": "p", "method": "roots/list"})
            head, tail = json.dumps(reply, indent=1).split("\n", 1)
            tail = "\n".join(f"data: {line}" for line in tail.split("\n"))
            self._send(200, "text/event-stream", f": hello\n\ndata: {ping}\n\nid: 1\ndata: {head}\n{tail}\n\n".encode())

    def do_DELETE(self) -> None:
        self.server.ended.append(self.headers["Mcp-Session-Id"])  # pyright: ignore[reportAttributeAccessIssue]
        self._send(200, "text/plain", b"")

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Mcp-Session-Id", "s1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


if __name__ == "__main__":
    MODE = "".join(sys.argv[1:])
    if MODE == "dead":
        sys.exit("the database is locked")
    serve_stdio(MODE)
