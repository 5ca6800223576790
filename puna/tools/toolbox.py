"""The toolbox of a conversation: which tools there are, and several calls run side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools.calculator import CALCULATOR
from puna.tools.functions import Tool, ToolResult, call_tool, load_tools


class Closable(Protocol):
    def close(self) -> None: ...


class Toolbox:
    """The tools of one conversation.

    Args:
        tools: functions and built-in tools; names must differ.
        owned: what to close with the toolbox, for example connections to servers.
    """

    def __init__(self, tools: Sequence[Tool] = (), owned: Sequence[Closable] = ()) -> None:
        names = [tool.name for tool in tools]
        for name in names:
            if names.count(name) > 1:
                raise PunaError(f"two tools are called {name}; rename one of them")
        self.tools, self._owned = list(tools), list(owned)

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
        if not lanes:
            return []

        def run_lane(places: list[int]) -> list[tuple[int, ToolResult]]:
            return [(place, call_tool(calls[place], self.tools)) for place in places]

        with ThreadPoolExecutor(len(lanes), "tools") as pool:
            futures = [pool.submit(run_lane, places) for places in lanes.values()]
            done = dict(pair for future in futures for pair in future.result())
        return [done[place] for place in range(len(calls))]

    def close(self) -> None:
        for resource in self._owned:
            resource.close()

    def __enter__(self) -> "Toolbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_toolbox(names: Sequence[str]) -> Toolbox:
    """The toolbox of the tools named: `calculator`, or a Python file whose public functions are tools."""
    tools: list[Tool] = []
    for name in names:
        if name == "calculator":
            tools.append(CALCULATOR)
        elif name.endswith(".py"):
            tools += load_tools(Path(name))
        else:
            raise PunaError(f"tool {name!r}: name calculator or a Python file")
    return Toolbox(tools)
