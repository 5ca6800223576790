"""Tools of MCP servers, over standard input and output and over HTTP; the official package's server where it is."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools import Toolbox, mcp, open_toolbox
from tests.serving import serving
from tests.tools.mcp_server import HttpServer

SERVER = f"{sys.executable} {Path(__file__).with_name('mcp_server.py')}"


@pytest.fixture
def http() -> Iterator[HttpServer]:
    with serving(HttpServer()) as server:
        yield server


@pytest.fixture(params=["stdio", "http"])
def toolbox(request: pytest.FixtureRequest) -> Iterator[Toolbox]:
    target = SERVER if request.param == "stdio" else request.getfixturevalue("http").url
    with open_toolbox([f"mcp:{target}", "calculator"]) as toolbox:
        yield toolbox


def test_tools_of_a_server(toolbox: Toolbox):
    assert [tool.name for tool in toolbox.tools] == ["add", "draw", "fail", "wait", "calculator"]
    schema = (toolbox.schemas() or [])[0]["function"]
    assert schema["description"] == "Add two numbers."
    assert schema["parameters"]["required"] == ["a", "b"]
    calls = [
        ("add", {"a": 2, "b": 3}),
        ("draw", {}),
        ("fail", {}),
        ("add", {"a": "2"}),
        ("calculator", {"expression": "1"}),
    ]
    results = toolbox.run([ToolCall(name, arguments) for name, arguments in calls])
    assert [result.text for result in results] == [
        "5", "[resource_link x://y]", "error: it broke", 'error: a="2": must be of type integer', "1",
    ]  # fmt: skip
    assert results[1].images == [b"\x89PNG picture"]
    assert [result.error for result in results] == [False, False, True, True, False]


def test_calls_overtake_one_another(toolbox: Toolbox):
    slow, fast = toolbox.run([ToolCall("wait", {"seconds": 0.3}), ToolCall("add", {"a": 1, "b": 1})])
    assert (slow.text, fast.text) == ("late", "2")
    assert fast.seconds < slow.seconds


def test_a_session_shares_the_connection(toolbox: Toolbox):
    with toolbox.session() as other:
        (result,) = other.run([ToolCall("add", {"a": 1, "b": 2})])
        assert result.text == "3"
    (result,) = toolbox.run([ToolCall("add", {"a": 1, "b": 2})])
    assert result.text == "3"


def test_the_session_of_a_server_ends_with_the_toolbox(http: HttpServer):
    open_toolbox([f"mcp:{http.url}"]).close()
    assert http.ended == ["s1"]
    assert http.answers[0]["error"]["message"] == "puna does not offer roots/list"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no-such-program --x", "No such file or directory.*give a command that starts a server, or a URL"),
        ("", "give a command that starts a server, or a URL"),
        (f"{SERVER} dead", "the server has ended: the database is locked"),
        (f"{SERVER} empty", "the server has no tools"),
        ("http://127.0.0.1:9/mcp", "ConnectError"),
    ],
)
def test_servers_that_do_not_serve(target: str, told: str):
    with pytest.raises(PunaError, match=told):
        open_toolbox([f"mcp:{target}"])


def test_a_server_that_stays_silent_or_dies(monkeypatch: pytest.MonkeyPatch):
    with open_toolbox([f"mcp:{SERVER} silent"]) as toolbox:
        monkeypatch.setattr(mcp.McpServer._ask, "__defaults__", (0.2,))
        (result,) = toolbox.run([ToolCall("add", {"a": 1, "b": 1})])
        assert "no answer to tools/call within 0 s" in result.text
        server = toolbox._owned[0]
        assert isinstance(server, mcp.McpServer)
        transport = server._transport
        assert isinstance(transport, mcp.Stdio)
        transport._process.kill()
        (result,) = toolbox.run([ToolCall("add", {"a": 1, "b": 1})])
        assert "the server has ended" in result.text


@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="the official package mcp is not installed")
def test_the_official_server(tmp_path: Path):
    server = tmp_path / "server.py"
    server.write_text(
        "from mcp.server.fastmcp import FastMCP\n"
        "server = FastMCP('test')\n"
        "@server.tool()\n"
        "def greet(name: str, times: int = 1) -> str:\n    'Say hello.'\n    return f'hello {name} ' * times\n"
        "server.run()\n"
    )
    with open_toolbox([f"mcp:{sys.executable} {server}"]) as toolbox:
        (result,) = toolbox.run([ToolCall("greet", {"name": "llama", "times": 2})])
    assert result.text == "hello llama hello llama "
