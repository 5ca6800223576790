"""The toolbox of a conversation: which tools there are, and several calls run side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools.calculator import CALCULATOR
from puna.tools.functions import Tool, ToolResult, call_tool, load_tools
from puna.tools.python import Interpreter, interpreter_tool
from puna.tools.sandbox.launch import Limits

KINDS = "python, brave, wolfram, calculator, FILE.py, mcp:COMMAND or mcp:URL"


class Closable(Protocol):
    def close(self) -> None: ...


class Toolbox:
    """The tools of one conversation.

    Args:
        tools: functions and built-in tools; names must differ.
        python: limits of the code interpreter; None leaves it out.
        owned: what to close with the toolbox, for example connections to servers.
    """

    def __init__(
        self, tools: Sequence[Tool] = (), python: Limits | None = None, owned: Sequence[Closable] = ()
    ) -> None:
        self._shared, self._owned, self.limits = list(tools), list(owned), python
        self.interpreter = Interpreter(python) if python else None
        self.tools = [*self._shared, *([interpreter_tool(self.interpreter)] if self.interpreter else [])]
        names = [tool.name for tool in self.tools]
        for name in names:
            if names.count(name) > 1:
                raise PunaError(f"two tools are called {name}; rename one of them")

    def session(self) -> "Toolbox":
        """A toolbox with the same tools for another conversation, which has an interpreter of its own."""
        return Toolbox(self._shared, self.limits)

    def schemas(self) -> list[dict[str, Any]] | None:
        """The schemas of the functions, for `Chat.tools`; None without any."""
        return [tool.schema for tool in self.tools if not tool.builtin] or None

    def builtins(self) -> list[str] | None:
        """The names of the built-in tools, for `Chat.builtin_tools`; None without any."""
        return [tool.name for tool in self.tools if tool.builtin] or None

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """The results of a message's calls, in their order. Calls run side by side, those of a serial tool in turn."""
        serial = {tool.name for tool in self.tools if tool.serial}
        lanes: dict[Any, list[int]] = {}
        for place, call in enumerate(calls):
            lanes.setdefault(call.name if call.name in serial else place, []).append(place)

        def run_lane(places: list[int]) -> list[tuple[int, ToolResult]]:
            return [(place, call_tool(calls[place], self.tools)) for place in places]

        pool = ThreadPoolExecutor(max(len(lanes), 1), "tools")
        try:
            futures = [pool.submit(run_lane, places) for places in lanes.values()]
            done = dict(pair for future in futures for pair in future.result())
        except KeyboardInterrupt:  # the user's Ctrl-C ends the code that runs, not only the waiting
            self.interrupt()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [done[place] for place in range(len(calls))]

    def put_file(self, name: str, data: bytes) -> None:
        """Give the code interpreter a file; `name` is a path in its folder."""
        self._python().put_file(name, data)

    def get_file(self, name: str) -> bytes:
        """Take a file from the code interpreter's folder."""
        return self._python().get_file(name)

    def files(self) -> dict[str, int]:
        """The files of the code interpreter's folder and their bytes."""
        return self.interpreter.files() if self.interpreter else {}

    def interrupt(self) -> None:
        """End the code that runs now, from any thread; variables stay."""
        if self.interpreter:
            self.interpreter.interrupt()

    def reset(self) -> None:
        """Begin another conversation: the code interpreter's variables and files are gone."""
        if self.interpreter:
            self.interpreter.close()

    def close(self) -> None:
        for resource in [*([self.interpreter] if self.interpreter else []), *self._owned]:
            resource.close()

    def _python(self) -> Interpreter:
        if self.interpreter is None:
            raise PunaError("there is no code interpreter to keep files; add the tool python")
        return self.interpreter

    def __enter__(self) -> "Toolbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_toolbox(
    names: Sequence[str],
    limits: Limits | None = None,
    brave_key: str | Path | None = None,
    wolfram_key: str | Path | None = None,
) -> Toolbox:
    """The toolbox of the tools named.

    Args:
        names: `python`, `brave`, `wolfram`, `calculator`, a Python file whose public functions are tools, or
            `mcp:COMMAND` or `mcp:URL`, a server of the Model Context Protocol.
        limits: of python.
        brave_key, wolfram_key: a key, or a file that holds it; by default BRAVE_API_KEY and WOLFRAM_APP_ID.
    """
    from puna.tools import mcp, web  # httpx takes a while, and most runs need no web

    tools: list[Tool] = []
    owned: list[Closable] = []
    try:
        for name in names:
            if name == "calculator":
                tools.append(CALCULATOR)
            elif name.startswith("mcp:"):
                server = mcp.McpServer(name.removeprefix("mcp:").strip())
                owned.append(server)
                tools += server.tools
            elif name.endswith(".py"):
                tools += load_tools(Path(name))
            elif name == "brave":
                tools.append(web.brave_search(web.find_key(brave_key, "BRAVE_API_KEY", "--brave-key")))
            elif name == "wolfram":
                tools.append(web.wolfram_alpha(web.find_key(wolfram_key, "WOLFRAM_APP_ID", "--wolfram-key")))
            elif name != "python":
                raise PunaError(f"tool {name!r}: name {KINDS}")
        return Toolbox(tools, (limits or Limits()) if "python" in names else None, owned)
    except BaseException:
        for resource in owned:
            resource.close()
        raise
