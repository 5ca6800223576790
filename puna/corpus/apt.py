"""Packages of a Debian or Ubuntu system, fetched with apt in a folder of our own: no root, nothing is installed.

apt takes its sources and its keys from the system, so what arrives is what the system would have installed.
"""

import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import IO

from puna.errors import PunaError
from puna.log import Log

SECONDS = 20  # of silence before a server is given up
UPDATE_SECONDS = 300


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    size: int
    """Bytes to download."""
    depends: tuple[str, ...]


class Apt:
    """apt with its lists and caches in `folder`. Raises PunaError where the system has no apt."""

    def __init__(self, folder: Path) -> None:
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if not which(tool):
                raise PunaError(f"this system has no {tool}")
        for name in ("state/lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True)
        options = {
            "Dir::State": folder / "state",
            "Dir::State::Lists": folder / "state/lists",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",  # apt's own user may not be able to enter the folder
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": SECONDS,
            "Acquire::https::Timeout": SECONDS,
        }
        self._options = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the lists. A source that fails is no reason to stop: the packages may come from another."""
        with self._start("apt-get", "update", "-q") as process:
            try:
                process.communicate(timeout=UPDATE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def show(self, names: Iterable[str]) -> dict[str, Package]:
        """The version that would be installed, of each package that there is."""
        if not (names := sorted(names)):
            return {}
        with self._start("apt-cache", "show", "--no-all-versions", *names) as process:
            output, _ = process.communicate()
        found: dict[str, Package] = {}
        for stanza in output.decode("utf-8", "replace").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
            if "Package" in fields and "Size" in fields:
                depends = [part.split()[0] for part in fields.get("Depends", "").split(",") if part.strip()]
                name = fields["Package"]
                found[name] = Package(name, fields["Version"], int(fields["Size"]), tuple(depends))
        return found

    def download(self, packages: list[Package], folder: Path, log: Log) -> dict[str, Path]:
        """Fetch into `folder`: name -> file of each that arrived whole.

        apt skips what is whole there already, takes up what is not, and checks every digest.
        """
        total = sum(package.size for package in packages)
        names = [package.name for package in packages]
        with (
            self._start("apt-get", "download", "-qq", *names, folder=folder) as process,
            log.progress("downloading", total) as bar,
        ):
            done = 0
            while done < total and process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.3)
                there = min(total, sum(path.stat().st_size for path in folder.glob("*.deb")))
                bar.advance(there - done, f"{there / 1e6:.0f} of {total / 1e6:.0f} MB")
                done = there
        files = {package: next(folder.glob(f"{package.name}_*.deb"), None) for package in packages}
        return {p.name: file for p, file in files.items() if file and file.stat().st_size == p.size}

    def _start(self, program: str, *words: str, folder: Path | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program, *self._options, *words],
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "apt-cache" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def files_of(deb: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The ordinary files in a package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                if member.isfile() and (content := archive.extractfile(member)):
                    yield member, content
