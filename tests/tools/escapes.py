"""Run attempts to escape as some user: `python escapes.py USER WAY PYTHON` with a JSON object of them on its input.

Writes JSON: what each attempt got, whether the sandbox still works between them, whether a file of the user's is as it
was, and which files and processes are left when the sandbox has gone.
"""

import json
import os
import pwd
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from puna.tools.python import Interpreter
from puna.tools.sandbox.launch import Limits, view


def become(user: str) -> None:
    if user == "plain":
        number = pwd.getpwnam("nobody").pw_uid
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)


def processes() -> set[str]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if state[0] != "Z" and state[1] == str(os.getpid()) and folder.name != str(os.getpid()):
            found.add(command.decode(errors="replace")[:200])
    return found


def main(user: str, way: str, python: str, attempts: dict[str, str]) -> dict[str, Any]:
    become(user)
    with tempfile.TemporaryDirectory(prefix="puna-escape-", dir="/var/tmp") as folder:
        marker, path = Path(folder, "secret"), str(Path(folder, "socket"))
        marker.write_text("kept")
        tcp, unix, datagrams = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), folder + "/dgram"
        unix.bind(path)
        unix.listen()
        receiver, abstract = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        receiver.bind(datagrams)
        abstract.bind("\0" + datagrams)
        facts = {"MARKER": str(marker), "PORT": tcp.getsockname()[1], "SOCKET": path, "HOST": os.getpid()}
        before, mounts = processes(), Path("/proc/self/mountinfo").read_text()
        if way == "none":
            got = {name: outside(code, facts | {"SOCKET": path if "connect(" in code else datagrams}, folder)
                   for name, code in attempts.items()}  # fmt: skip
            return {"got": got}
        binds, links, _ = view(python)
        facts |= {"VISIBLE": sorted({part for p in binds for part in Path(p).parts}), "SHOWN": [*binds, *links]}
        interpreter = Interpreter(Limits(seconds=1, memory=256 << 20, disk=16 << 20), way, python)  # pyright: ignore
        got, alive = {}, True
        for name, code in attempts.items():
            facts["SOCKET"] = datagrams if "sendto" in code else path
            head = "".join(f"{key} = {value!r}\n" for key, value in facts.items())
            interpreter.run(head + code)
            # an attempt that got something says so in `got`; one that was killed lost it
            text = interpreter.run("got = got if 'got' in globals() else None; print(got or None); got = None").text
            got[name] = text.strip()
            alive = alive and interpreter.run("print(6 * 7)").text == "42"
            if "bomb" in name or "many" in name or "signal" in name:
                interpreter.close()
        interpreter.close()
        threads = [thread.name for thread in threading.enumerate() if "sandbox" not in thread.name][1:]
        others = [] if Path("/proc/self/mountinfo").read_text() == mounts else ["a mount"]
        files = sorted(name for name in os.listdir(folder) if name not in ("secret", "socket", "dgram"))
        return {
            "got": got,
            "alive": alive,
            "marker": marker.read_text(),
            "left": {"files": files + others, "processes": sorted(processes() - before) + threads},
        }


def outside(code: str, facts: dict[str, Any], folder: str) -> str:
    """What an attempt gets without a sandbox, in a child of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(tempfile.mkdtemp(dir=folder))
        names = dict(facts)
        try:
            exec(code, names)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        os.write(write, b"yes" if names.get("got") else b"None")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return "yes" if "yes" in text else "None"  # an attempt that forks writes twice


if __name__ == "__main__":
    _, user, way, python = sys.argv
    print(json.dumps(main(user, way, python, json.load(sys.stdin))))
