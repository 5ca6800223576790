"""Ways to make a sandbox, as this machine has them."""

import os
from functools import cache
from pathlib import Path

import pytest

from puna.tools.sandbox.launch import Limits, SandboxError, Way, start


@cache
def missing(way: Way) -> str | None:
    """Why a way cannot be taken here."""
    try:
        start(Limits(), way).close()
    except SandboxError as error:
        return str(error)
    return None


@pytest.fixture(scope="session", params=["bwrap", "namespaces"])
def way(request: pytest.FixtureRequest) -> Way:
    """Each way that works here."""
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def any_way() -> None:
    """A sandbox can be made somehow."""
    reasons = [missing(way) for way in ("bwrap", "namespaces")]
    if all(reasons):
        pytest.skip(f"no sandbox here: {reasons}")


def processes_of_sandboxes() -> set[int]:
    """Processes on this machine that run a worker."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if any(word.endswith(b"sandbox/worker.py") for word in words):
            found.add((int(folder.name), int(parent)))
    return {number for number, _ in found}


def mounts() -> str:
    return Path(f"/proc/{os.getpid()}/mountinfo").read_text()
