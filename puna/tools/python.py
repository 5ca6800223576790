"""The code interpreter: Python in a sandbox, one for each conversation.

What runs is shut off from files, network and processes of the machine by the kernel's namespaces, seccomp and resource
limits (puna/tools/sandbox/). It is no virtual machine: code in it still talks to this machine's kernel, and a hole in
the kernel is a way out.
"""

import base64
import signal
import sys
import threading
import time
from typing import Any

from puna.errors import PunaError
from puna.tools.functions import Tool, ToolResult
from puna.tools.sandbox.launch import Limits, Sandbox, Way, start

GRACE_SECONDS = 1.0
"""From the interrupt of a call that takes too long to its end by force."""
LOST = "the interpreter was started anew: its variables and files are gone"


class Interpreter:
    """Python that keeps its variables, imports and files from call to call; calls run one after another.

    It starts with the first call and does nothing between calls: its threads are stopped too.

    Args:
        limits: of time, memory and output.
        way: "bwrap" or "namespaces"; None takes the first that works.
        python: the Python to run, this one by default; its packages are there to import.

    Raises:
        PunaError: from a call, where no sandbox can be made.
    """

    def __init__(self, limits: Limits | None = None, way: Way | None = None, python: str = sys.executable) -> None:
        self.limits, self.python = limits or Limits(), python
        self.way: Way | None = way
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        self._interrupted = False

    def run(self, code: str) -> ToolResult:
        """What the code prints, the value of its last expression and its figures; an exception is told as text."""
        began = time.perf_counter()
        reply, note = self._ask({"do": "run", "code": code})
        text = str(reply.get("text", ""))
        failed = bool(reply.get("failed")) or bool(note)
        text = "error: " * failed + "\n".join(filter(None, (text.rstrip("\n"), note))) or "(no output)"
        images = [base64.b64decode(image) for image in reply.get("images", [])]
        return ToolResult(text, images, time.perf_counter() - began, failed)

    def put_file(self, name: str, data: bytes) -> None:
        """Write a file of the interpreter's folder; `name` may have folders."""
        self._file({"do": "put", "name": _inner(name), "data": base64.b64encode(data).decode()})

    def get_file(self, name: str) -> bytes:
        """Read a file of the interpreter's folder."""
        reply = self._file({"do": "get", "name": _inner(name)})
        try:
            return base64.b64decode(reply["data"])
        except (KeyError, TypeError, ValueError):  # the code wrote a reply of its own
            raise PunaError(f"{name}: the interpreter gives no file") from None

    def files(self) -> dict[str, int]:
        """The files of the interpreter's folder and their bytes; none before the first call."""
        return self._file({"do": "list"})["files"] if self._sandbox else {}

    def interrupt(self) -> None:
        """End the call that runs, from any thread; variables and files stay, if the code lets itself be interrupted."""
        sandbox = self._sandbox
        if sandbox and self._lock.locked():
            self._interrupted = True
            sandbox.signal(signal.SIGINT)

    def close(self) -> None:
        """End the interpreter; a later call starts a new one."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox:
            sandbox.close()

    def _file(self, request: dict[str, Any]) -> dict[str, Any]:
        reply, note = self._ask(request)
        if note or "error" in reply:
            raise PunaError(f"{request.get('name', 'files')}: {reply.get('error', note)}")
        return reply

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """A reply, and a note where the call was cut short."""
        with self._lock:
            sandbox = self._sandbox = self._sandbox or start(self.limits, self.way, self.python)
            self._interrupted = False
            try:
                sandbox.signal(signal.SIGCONT)
                sandbox.send(request, self.limits.seconds)
                reply = sandbox.receive(self.limits.seconds)
                note = "the call was interrupted" if self._interrupted else ""
                if reply is None:
                    note = f"the call was stopped after {self.limits.seconds:g} s; do less at once"
                    sandbox.signal(signal.SIGINT)
                    reply = sandbox.receive(GRACE_SECONDS)
                if reply is not None:
                    sandbox.signal(signal.SIGSTOP)
                    return reply, note
            except (BrokenPipeError, EOFError):
                note = "the interpreter died, perhaps of too much memory" if self._sandbox else "it was closed"
            self.close()
            return {}, f"{note}; {LOST}"


def _inner(name: str) -> str:
    """A path within the folder."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or not name:
        raise PunaError(f"{name!r}: name a file by its path inside the interpreter's folder, without '..'")
    return name


def interpreter_tool(interpreter: Interpreter) -> Tool:
    """The built-in tool code_interpreter over an interpreter."""

    def code_interpreter(code: str) -> ToolResult:
        return interpreter.run(code)

    schema: dict[str, Any] = {
        "name": "code_interpreter",
        "description": "Run Python code; variables and files stay for the next call.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    }
    return Tool(code_interpreter, {"type": "function", "function": schema}, builtin=True, serial=True)
