"""Start a worker in a sandbox: by bubblewrap, or by namespaces of our own where it is missing, or not at all."""

import json
import os
import secrets
import select
import shutil
import signal
import site
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from puna.errors import PunaError
from puna.tools.sandbox.confine import DEVICES, SCRATCH

Way = Literal["bwrap", "namespaces"]
WAYS: tuple[Way, ...] = ("bwrap", "namespaces")
HERE = Path(__file__).parent
START_SECONDS = 20.0
MOST_BYTES = 128 << 20
"""Longest reply that is read."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "USER": "llama",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": f"{SCRATCH}/.matplotlib",
    # address space is what limits memory, and each thread of a library reserves some
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_FIRST_USER, _USERS = 0x70000000, 0x0FFFFFFF
"""A sandbox that root starts becomes one of these users, which own nothing; limits on threads count by user."""

# A child is told to die with the *thread* that started it (prctl(2)), so one thread that lasts starts all of them.
_launcher = ThreadPoolExecutor(1, "sandbox")


def _new_launcher() -> None:
    """A forked process has no threads but one."""
    global _launcher
    _launcher = ThreadPoolExecutor(1, "sandbox")


os.register_at_fork(after_in_child=_new_launcher)


@dataclass(frozen=True)
class Limits:
    """Of one conversation's Python; ours.

    Attributes:
        seconds: of one call.
        memory: bytes of address space.
        disk: bytes of files.
        threads: at once, the first one included.
        output: characters of a reply.
    """

    seconds: float = 30.0
    memory: int = 2 << 30
    disk: int = 64 << 20
    threads: int = 32
    output: int = 20_000

    def __post_init__(self) -> None:
        for name, least in (("seconds", 0.001), ("memory", 64 << 20), ("disk", 1 << 20), ("threads", 1), ("output", 2)):
            if getattr(self, name) < least:
                raise PunaError(f"Limits.{name}={getattr(self, name)}: give at least {least}")


class SandboxError(PunaError):
    """No sandbox can be made here."""


class Sandbox:
    """A running worker, and the lines of JSON to and from it; `inside` is its process number out here."""

    def __init__(self, process: subprocess.Popen[bytes], inside: int) -> None:
        self.process, self.inside, self._rest = process, inside, bytearray()
        self._number = 0

    def send(self, request: dict[str, Any], seconds: float) -> None:
        """Hand over a request; BrokenPipeError if the worker is gone, EOFError if it does not take it in time."""
        assert self.process.stdin
        self._number += 1
        end = time.monotonic() + seconds
        rest = memoryview(json.dumps(request | {"number": self._number}).encode() + b"\n")
        while rest:
            if not select.select([], [self.process.stdin], [], max(0.0, end - time.monotonic()))[1]:
                raise EOFError
            rest = rest[os.write(self.process.stdin.fileno(), rest) :]

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The reply to the last request, or None when the time is over; EOFError if the worker is gone or talks rot."""
        assert self.process.stdout
        end = time.monotonic() + seconds
        while True:
            searched = 0
            while (at := self._rest.find(b"\n", searched)) < 0:
                if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                    return None
                piece, searched = os.read(self.process.stdout.fileno(), 1 << 20), len(self._rest)
                self._rest += piece
                if not piece or len(self._rest) > MOST_BYTES:
                    raise EOFError
            line, self._rest = self._rest[:at], self._rest[at + 1 :]
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                raise EOFError from None
            if not isinstance(reply, dict):
                raise EOFError
            if reply.get("number", 0) == self._number:  # others are late or forged
                return reply

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.inside, number)

    def close(self) -> None:
        """Kill what is inside; nothing of it is left."""
        self.signal(signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


def start(limits: Limits, way: Way | None = None, python: str = sys.executable) -> Sandbox:
    """A sandbox with a worker that has locked itself in; SandboxError with the reasons where none can be made."""
    if sys.platform != "linux":
        raise SandboxError(f"the Python tool needs Linux for its sandbox, this is {sys.platform}; leave it out")
    reasons = []
    for one in WAYS if way is None else (way,):
        try:
            return _launcher.submit(_start, one, limits, python).result()
        except (OSError, ValueError) as error:
            reasons.append(f"{one}: {error}")
    raise SandboxError(
        f"the Python tool does not run without a sandbox, and none can be made here ({'; '.join(reasons)}). "
        "Install bubblewrap, or allow user namespaces (sysctl kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns), or leave the tool out"
    )


def _start(way: Way, limits: Limits, python: str) -> Sandbox:
    binds, links, packages = view(python)
    settings = {"memory": limits.memory, "disk": limits.disk, "threads": limits.threads, "output": limits.output}
    settings |= {"user": os.getuid() or _own_user(), "packages": packages}
    told, tell = os.pipe()
    # -S: the packages' folders are enough, and what site.py does besides takes as long as all of Python's start
    command = [python, "-I", "-S", str(HERE / "worker.py")]
    if way == "bwrap":
        command = _bubblewrap(binds, links, tell) + command
    else:
        settings |= {"binds": binds, "links": links, "info": tell}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [*command, json.dumps(settings)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=[tell],
            start_new_session=True,
        )
    except OSError:
        os.close(told)
        raise
    finally:
        os.close(tell)
    with os.fdopen(told, "rb") as file:
        numbers = json.loads(file.read() or b"{}")
    sandbox = Sandbox(process, numbers.get("child-pid", process.pid))
    with suppress(EOFError):
        if sandbox.receive(START_SECONDS) == {"ready": True}:
            os.set_blocking(sandbox.process.stdin.fileno(), False)  # pyright: ignore[reportOptionalMemberAccess]
            if way == "bwrap":  # whose process 1 is its own: it may be killed by its parent, which the worker may not
                sandbox.inside = int(Path(f"/proc/{sandbox.inside}/task/{sandbox.inside}/children").read_text())
            return sandbox
    sandbox.signal(signal.SIGKILL)
    process.kill()
    said = process.communicate()[1].decode("utf-8", "replace").strip()
    raise OSError(said.splitlines()[-1] if said else f"no answer within {START_SECONDS:.0f} s")


def _own_user() -> int:
    """A user for root's sandbox: its own, or nobody where the numbers that we have are few (a rootless container)."""
    number = _FIRST_USER + secrets.randbelow(_USERS)
    ranges = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    there = any(int(first) <= number < int(first) + int(count) for first, _, count in ranges)
    return number if there else 65534


def _bubblewrap(binds: list[str], links: dict[str, str], info: int) -> list[str]:
    program = shutil.which("bwrap", path=os.environ.get("PATH", os.defpath) + ":/usr/bin:/bin")
    if program is None:
        raise FileNotFoundError("bubblewrap is not installed")
    command = [program, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    # what the worker needs before it locks itself in: mounting its scratch folder and, from root, changing the user
    for name in ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP") if os.getuid() == 0 else ("SYS_ADMIN",):
        command += ["--cap-add", f"CAP_{name}"]
    command += [] if os.getuid() == 0 else ["--unshare-user"]
    command += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--info-fd", str(info)]
    parents = {str(parent): None for path in [*binds, *links, "/dev/null"] for parent in reversed(Path(path).parents)}
    for path in list(parents)[1:]:  # made by the way, they would be for root only
        command += ["--perms", "0755", "--dir", path]
    for path in binds:
        command += ["--ro-bind", path, path]
    for name in DEVICES:
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for path, target in links.items():
        command += ["--symlink", target, path]
    return [*command, "--dir", SCRATCH, "--remount-ro", "/", "--chdir", "/", "--"]


@cache
def view(python: str) -> tuple[list[str], dict[str, str], list[str]]:
    """What the sandbox shows, read-only: the system's programs and libraries, and Python's; the links beside; and those
    of the folders that hold Python's packages."""
    if python == sys.executable:
        prefixes, packages = [sys.prefix, sys.base_prefix], site.getsitepackages()
    else:
        code = "import json, site, sys; print(json.dumps([[sys.prefix, sys.base_prefix], site.getsitepackages()]))"
        said = subprocess.run([python, "-I", "-c", code], capture_output=True, check=True).stdout
        prefixes, packages = json.loads(said)
    wanted = ["/usr", *prefixes, "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts", str(HERE)]
    wanted += [str(path) for path in sorted(Path("/").glob("lib*"))] + ["/bin", "/sbin"]
    links: dict[str, str] = {}
    binds: list[str] = []
    for path in dict.fromkeys(wanted):
        if os.path.islink(path) and path not in prefixes:
            links[path] = os.readlink(path)
        elif os.path.exists(path) and not any(path.startswith(f"{bound}/") for bound in binds):
            binds.append(path)
    if not any(path.startswith("/tmp/") for path in binds):  # where a virtual environment lies, say
        links["/tmp"] = SCRATCH
    return binds, links, packages
