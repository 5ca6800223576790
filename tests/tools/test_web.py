"""Brave search and Wolfram Alpha against a local server that answers as their documentation says."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools import Toolbox, open_toolbox
from puna.tools.web import brave_search, find_key, wolfram_alpha
from tests.serving import serving

BRAVE = {
    "type": "search",
    "query": {"original": "llama", "more_results_available": True},
    "web": {
        "type": "search",
        "results": [
            {"title": "<strong>Llama</strong>", "url": "https://en.wikipedia.org/wiki/Llama", "age": "May 1, 2026",
             "description": "The <strong>llama</strong> is a camelid.", "type": "search_result"},
            {"title": "Puna", "url": "https://example.org/puna", "description": "A high grassland."},
            {"title": "Third", "url": "https://example.org/3", "description": "More."},
        ],
    },
}  # fmt: skip
WOLFRAM = {
    "queryresult": {
        "success": True,
        "error": False,
        "numpods": 2,
        "pods": [
            {"title": "Input interpretation", "id": "Input", "subpods": [{"plaintext": "mass of a llama"}]},
            {"title": "Result", "id": "Result", "primary": True,
             "subpods": [{"plaintext": "130 kg\n(kilograms)"}, {"plaintext": "286 lb"}]},
            {"title": "Picture", "id": "Image", "subpods": [{"plaintext": ""}]},
        ],
    }
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Answers in turn with (status, headers, body); the last answer stays."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.asked: list[tuple[dict[str, list[str]], dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append((parse_qs(urlsplit(self.path).query), dict(self.headers)))
        answers = self.server.answers
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def ask(tool: str, server: Server, query: str = "llama") -> tuple[str, bool]:
    make = {"brave_search": brave_search, "wolfram_alpha": wolfram_alpha}[tool]
    toolbox = Toolbox([make("secret-key", url=server.url, pause=0.001)])
    assert toolbox.builtins() == [tool]
    (result,) = toolbox.run([ToolCall(tool, {"query": query})])
    assert "secret-key" not in result.text
    return result.text, result.error


def test_brave(server: Server):
    server.answers = [(200, {}, BRAVE)]
    text, error = ask("brave_search", server, "llama & puna")
    assert not error
    assert text.startswith(
        "Llama\nhttps://en.wikipedia.org/wiki/Llama\nThe llama is a camelid. (May 1, 2026)\n\nPuna\n"
    )
    ((query, headers),) = server.asked
    assert query == {"q": ["llama & puna"], "count": ["5"]}
    assert headers["X-Subscription-Token"] == "secret-key"


def test_wolfram(server: Server):
    server.answers = [(200, {}, WOLFRAM)]
    expected = "Input interpretation: mass of a llama\nResult: 130 kg, (kilograms); 286 lb"
    assert ask("wolfram_alpha", server) == (expected, False)
    ((query, _),) = server.asked
    assert query == {"input": ["llama"], "appid": ["secret-key"], "output": ["JSON"], "format": ["plaintext"]}


@pytest.mark.parametrize(
    ("tool", "answer", "told"),
    [
        ("brave_search", (200, {"query": {}}), "no results for 'llama'"),
        ("brave_search", (200, "<html>"), "error: Brave search: the answer is no JSON object but '<html>'"),
        (
            "brave_search",
            (422, {"type": "ErrorResponse", "error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "detail": "Not valid."}}),
            "error: Brave search: HTTP 422, check the key and the query: Not valid.",
        ),
        ("wolfram_alpha", (403, "Error 1: Invalid appid"), "HTTP 403, check the key: Error 1: Invalid appid"),
        (
            "wolfram_alpha",
            (200, {"queryresult": {"success": False, "error": {"code": "1", "msg": "Invalid appid"}}}),
            "error: Wolfram Alpha: Invalid appid; check WOLFRAM_APP_ID",
        ),
        (
            "wolfram_alpha",
            (200, {"queryresult": {"success": False, "error": False, "didyoumeans": [{"val": "lama"}]}}),
            "error: Wolfram Alpha does not understand 'llama'; it asks: did you mean lama?",
        ),
        ("wolfram_alpha", (200, {"queryresult": {"success": False}}), "not understand 'llama'; put it differently"),
    ],
)  # fmt: skip
def test_what_the_model_is_told_when_nothing_comes(server: Server, tool: str, answer: tuple[int, Any], told: str):
    server.answers = [(answer[0], {}, answer[1])]
    text, error = ask(tool, server)
    assert told in text
    assert error == text.startswith("error: ")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server):
    busy = (429, {"X-RateLimit-Reset": "0, 1419704"}, {"error": {"detail": "Request rate limit exceeded"}})
    server.answers = [busy, (503, {"Retry-After": "0.01"}, "later"), (200, {}, BRAVE)]
    assert ask("brave_search", server)[0].startswith("Llama")
    assert len(server.asked) == 3
    server.answers = [busy]
    text, error = ask("brave_search", server)
    assert error
    assert text == "error: Brave search: HTTP 429, too many requests: Request rate limit exceeded"
    assert len(server.asked) == 6


def test_no_server(server: Server):
    url = server.url
    server.socket.close()
    tool = wolfram_alpha("secret-key", url=url, pause=0.001)
    (result,) = Toolbox([tool]).run([ToolCall("wolfram_alpha", {"query": "x"})])
    assert result.text == "error: Wolfram Alpha: cannot be reached (ConnectError)"


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "key"
    file.write_text("from-file\n")
    monkeypatch.setenv("BRAVE_API_KEY", "from-environment")
    monkeypatch.delenv("WOLFRAM_APP_ID", raising=False)
    assert find_key(file, "BRAVE_API_KEY", "--brave-key") == "from-file"
    assert find_key("given", "BRAVE_API_KEY", "--brave-key") == "given"
    assert find_key(None, "BRAVE_API_KEY", "--brave-key") == "from-environment"
    assert open_toolbox(["brave"]).builtins() == ["brave_search"]
    with pytest.raises(PunaError, match="--wolfram-key: no key; set WOLFRAM_APP_ID"):
        open_toolbox(["wolfram"])
    with pytest.raises(PunaError, match="neither a key nor a file"):
        open_toolbox(["brave"], brave_key=tmp_path / "none")
