"""Ways to make a sandbox, as this machine has them, and users to try it as."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from puna.tools.sandbox.launch import Limits, SandboxError, Way, start

WAYS: tuple[Way, ...] = ("bwrap", "namespaces")
ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
"""A Python that a plain user may run, where the tests' own lies in root's home."""


@cache
def missing(way: Way) -> str | None:
    """Why a way cannot be taken here."""
    try:
        start(Limits(), way).close()
    except SandboxError as error:
        return str(error)
    return None


@pytest.fixture(scope="session", params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Each way that works here."""
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="session")
def any_way() -> None:
    """A sandbox can be made somehow."""
    if all(missing(way) for way in WAYS):
        pytest.skip(f"no sandbox here: {missing(WAYS[0])}; {missing(WAYS[1])}")


@pytest.fixture(scope="session", params=["root", "plain"] if os.getuid() == 0 else ["this"])
def user(request: pytest.FixtureRequest) -> str:
    """Who makes the sandbox: root and a plain user when the tests run as root, else whoever runs them."""
    if request.param == "plain" and not Path(SYSTEM_PYTHON).exists():
        pytest.skip(f"a plain user needs {SYSTEM_PYTHON}")
    closed = [folder for folder in (ROOT, *ROOT.parents) if not folder.stat().st_mode & 0o001]
    if request.param == "plain" and closed:
        pytest.skip(f"a plain user may not enter {closed[0]}, where the tests lie")
    return request.param


def run_escapes(user: str, way: str, attempts: dict[str, str]) -> dict[str, Any]:
    """What tests/tools/escapes.py finds."""
    python = SYSTEM_PYTHON if user == "plain" else sys.executable
    command = [sys.executable, str(Path(__file__).with_name("escapes.py")), user, way, python]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PUNA_TEST_SECRET": "x"}
    done = subprocess.run(
        command,
        input=json.dumps(attempts),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
