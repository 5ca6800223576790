"""A real HTTP server in OpenAI's form, which answers by a function of the request, or does anything but."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
"""Status, body (bytes, or what becomes JSON) and headers."""


def completion(content: Any, tokens: tuple[int, int] = (100, 2), finish: str = "stop") -> Reply:
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "judge",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }  # fmt: skip
    return 200, body, {}


class Server:
    """Answers POST /v1/chat/completions by `reply`, where None hangs up; keeps what was asked."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply | None]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.at_once = self.most = 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(request)
                    outer.headers.append(self.headers)
                    outer.at_once += 1
                    outer.most = max(outer.most, outer.at_once)
                reply = outer.reply(request)
                with lock:
                    outer.at_once -= 1
                if reply is None:  # hang up without an answer
                    return
                status, body, headers = reply
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@contextmanager
def answering(reply: Callable[[dict[str, Any]], Reply | None]) -> Iterator[Server]:
    """A server in a thread of its own."""
    made = Server(reply)
    thread = threading.Thread(target=made.http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        thread.join()
        made.http.server_close()
