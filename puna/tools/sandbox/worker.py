"""The process inside the sandbox: it locks itself in, then runs code in one namespace until its input ends.

Requests and replies are lines of JSON on the descriptors it was started with, which are out of the code's way: standard
input is empty, standard output and error go to a file in memory that each reply empties. Code that finds the reply's
descriptor and writes to it deceives nobody but itself: the host takes what comes as this conversation's output.
"""

import ast
import base64
import io
import json
import linecache
import os
import signal
import sys
import traceback
import types
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out
import confine  # pyright: ignore[reportMissingImports]
import seccomp  # pyright: ignore[reportMissingImports]

IMAGES, IMAGE_BYTES = 8, 8 << 20
"""Most images of a reply, and bytes of each."""


class Worker:
    """Runs requests; the code's statements share one module, `__main__`.

    Args:
        output: a file in memory for what the code writes.
        room: characters of output that a reply shows; the middle of longer ones is left out.
    """

    def __init__(self, output: int, room: int) -> None:
        self.output, self.room, self.cells, self.running = output, room, 0, False
        self.module = types.ModuleType("__main__")
        sys.modules["__main__"] = self.module
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        if self.running:
            raise KeyboardInterrupt

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request: run, put, get or list."""
        name = os.path.join(confine.SCRATCH, request.get("name", ""))
        try:
            match request["do"]:
                case "run":
                    return self.run(request["code"])
                case "put":
                    os.makedirs(os.path.dirname(name), exist_ok=True)
                    with open(name, "wb") as file:
                        file.write(base64.b64decode(request["data"]))
                    return {}
                case "get":
                    with open(name, "rb") as file:
                        return {"data": base64.b64encode(file.read()).decode()}
                case "list":
                    return {"files": _files()}
            return {"error": f"unknown request {request['do']}"}
        except (OSError, MemoryError, ValueError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def run(self, code: str) -> dict[str, Any]:
        """What the code wrote, its last expression's value, its figures, and whether it raised an exception."""
        self.cells += 1
        for descriptor in (1, 2):
            os.dup2(self.output, descriptor)
        # one stream for both, without a buffer, so that what is written stays in order
        raw = io.FileIO(1, "w", closefd=False)
        stream: Any = io.TextIOWrapper(raw, encoding="utf-8", errors="replace", write_through=True)  # pyright: ignore
        sys.stdout = sys.stderr = stream
        images: list[bytes] = []
        trace = ""
        try:
            self.running = True
            self._execute(code, images)
            images += _figures()
        except BaseException as error:
            self.running = False
            trace = _trace(error)
        self.running = False
        shown = [base64.b64encode(image).decode() for image in images[:IMAGES] if len(image) <= IMAGE_BYTES]
        return {"text": self._written() + trace, "images": shown, "failed": bool(trace)}

    def _execute(self, code: str, images: list[bytes]) -> None:
        """Statements, and the value of the last one if it is an expression, as a notebook shows it."""
        name = f"<cell {self.cells}>"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), self.module.__dict__)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), self.module.__dict__)
            picture = getattr(value, "_repr_png_", None)
            image = picture() if picture and not isinstance(value, type) else None
            if isinstance(image, bytes):
                images.append(image)
            elif value is not None:
                print(repr(value))

    def _written(self) -> str:
        size = os.lseek(self.output, 0, os.SEEK_END)
        head = os.pread(self.output, min(size, 2 * self.room), 0)
        tail = os.pread(self.output, min(size - len(head), 2 * self.room), max(len(head), size - 2 * self.room))
        os.ftruncate(self.output, 0)
        os.lseek(self.output, 0, os.SEEK_SET)
        text = (head + tail).decode("utf-8", "replace")
        if len(text) <= self.room:
            return text
        half = self.room // 2
        return f"{text[:half]}\n[... {size:,} bytes in all, the middle is left out ...]\n{text[-half:]}"


def _trace(error: BaseException) -> str:
    """The traceback without this file's frames."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace, limit=20))


def _figures() -> list[bytes]:
    """Open figures of matplotlib as PNG files; they are closed."""
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    images = []
    for number in pyplot.get_fignums() if pyplot else ():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, format="png", bbox_inches="tight")
        pyplot.close(number)
        images.append(file.getvalue())
    return images


def _files() -> dict[str, int]:
    """Path under the scratch folder -> bytes; hidden ones are left out."""
    sizes = {}
    for folder, folders, names in os.walk(confine.SCRATCH):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                sizes[os.path.relpath(path, confine.SCRATCH)] = os.path.getsize(path)
    return sizes


def main(settings: dict[str, Any]) -> None:
    """Lock in and answer requests, one at a time.

    Args:
        settings: `info`, `binds` and `links` where there is no bubblewrap; user, memory, disk, threads; output;
            `packages`, folders to import from.
    """
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as replies:
        if "binds" in settings:
            confine.enter_namespaces(settings["binds"], settings["links"], settings["info"])
        empty, output = os.open("/dev/null", os.O_RDONLY), os.memfd_create("output")
        os.dup2(empty, 0)
        worker = Worker(output, settings["output"])
        confine.lock(settings["user"], settings["memory"], settings["disk"], settings["threads"])
        os.chdir(confine.SCRATCH)
        sys.path.pop(0)
        sys.path += settings["packages"]
        seccomp.load()
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        replies.write(b'{"ready": true}\n')
        replies.flush()
        for line in requests:
            request = json.loads(line)
            reply = {"number": request["number"], **worker.answer(request)}
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
