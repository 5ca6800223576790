"""Tools that a model may call, and what runs the calls.

    with open_toolbox(["python", "calculator", "mine.py", "mcp:SERVER ARGS", "brave"]) as toolbox:
        chat = Chat(messages, tools=toolbox.schemas(), builtin_tools=toolbox.builtins())
        results = toolbox.run(message.tool_calls)      # side by side; results in the order of the calls

- `Tool(function, schema, builtin=False)`: a function and what the model reads about it; `make_tool(function)` makes one
  of type hints and a docstring, `load_tools(path)` those of a Python file. `CALCULATOR` comes with puna.
- `Toolbox`, one for each conversation: `schemas()` (None or a list, for `Chat.tools`), `builtins()` (None or a list out
  of "code_interpreter", "brave_search", "wolfram_alpha", for `Chat.builtin_tools`), `run(calls) -> list[ToolResult]`,
  `session() -> Toolbox` (another conversation with the same tools), `put_file(name, bytes)`, `get_file(name) -> bytes`,
  `files() -> dict[str, int]` (sizes; of the Python tool), `interrupt()` (from any thread), `reset()` and `close()`.
- `ToolResult(text, images, seconds, error)`: `text` is what the model is told, `images` are PNG files as bytes, `error`
  says whether the call failed (`text` then begins with "error: ").
- `Limits`: of the Python tool's time, memory, files, threads and output.
- `run_call(call, tools) -> str`: one call without a toolbox. `puna.tools.loop` runs whole dialogues over an Engine.
"""

from puna.tools.calculator import CALCULATOR, calculator, last_number
from puna.tools.functions import Tool, ToolResult, load_tools, make_tool, run_call
from puna.tools.sandbox.launch import Limits
from puna.tools.toolbox import Toolbox, open_toolbox

__all__ = [
    "CALCULATOR",
    "Limits",
    "Tool",
    "ToolResult",
    "Toolbox",
    "calculator",
    "last_number",
    "load_tools",
    "make_tool",
    "open_toolbox",
    "run_call",
]
