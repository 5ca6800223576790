"""Where raw pages come from: which files a source holds, and how to open one of them.

folder or file                     WARC, HTML, JSONL and Parquet files, on this machine
s3://..., https://..., memory://   the same in any place that fsspec opens
commoncrawl:CC-MAIN-YYYY-WW        the WARC files of a crawl, from its published list of paths
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from puna.errors import PunaError

SUFFIXES = {
    "warc": (".warc", ".warc.gz", ".warc.zst"),
    "html": (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz", ".xhtml.gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz"),
    "parquet": (".parquet",),
}
CRAWL = "commoncrawl:"
ATTEMPTS = 4
"""Times that a remote file is asked for, with 1, 4 and 16 seconds between."""
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "size")
"""What file systems call the mark that changes with a file's content."""


@dataclass(frozen=True)
class File:
    """One file of a source."""

    path: str
    """On this machine, or an address that fsspec opens."""
    name: str
    """Relative to the source; the `origin` of its pages."""
    version: str
    """Changes when the file does, as far as can be told without reading it."""
    source: str = ""
    """The name that the recipe gives to the source, if it gives one."""

    @property
    def kind(self) -> str:
        """warc, html, jsonl or parquet; empty for another."""
        name = self.name.lower()
        return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), "")

    @property
    def remote(self) -> bool:
        return "://" in self.path

    def open(self) -> Any:
        """A binary file that can be read and searched from any place."""
        if not self.remote:
            return open(self.path, "rb")
        system, path = _filesystem(self.path)
        return system.open(path, "rb")

    @contextmanager
    def local(self, folder: Path) -> Iterator[Path]:
        """The file on this machine: a remote one is copied into `folder` for as long as it is used.

        Raises FileNotFoundError for a file that is not there, PunaError for a place that does not answer.
        """
        if not self.remote:
            yield Path(self.path)
            return
        copy = folder / f"fetched.{Path(self.name).name}"
        _fetch(self.path, copy)
        try:
            yield copy
        finally:
            copy.unlink()


def find_files(source: str, crawl_url: str = "", name: str = "") -> list[File]:
    """The files of a source, in the order of their names. PunaError where there is none."""
    if source.startswith(CRAWL):
        return _crawl(source.removeprefix(CRAWL), crawl_url.rstrip("/"), name)
    files = _remote_files(source, name) if "://" in source else _local_files(Path(source), name)
    if known := [file for file in files if file.kind]:
        return sorted(known, key=lambda file: file.name)
    suffixes = ", ".join(suffix for group in SUFFIXES.values() for suffix in group)
    raise PunaError(f"corpus.source = {source!r} holds no file that ends in {suffixes}")


def digest(files: list[File]) -> str:
    """Changes with the names and versions of the files."""
    lines = "".join(f"{file.source}\0{file.name}\0{file.version}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _local_files(source: Path, name: str) -> list[File]:
    if not source.exists():
        raise PunaError(
            f"corpus.source = {str(source)!r} does not exist; name a folder of WARC, HTML, JSONL or Parquet files, "
            "an address such as s3://..., commoncrawl:CC-MAIN-YYYY-WW, or 'demo'"
        )
    paths = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    files = []
    for path in paths:
        origin = path.name if path == source else path.relative_to(source).as_posix()
        stat = path.stat()
        files.append(File(str(path.absolute()), origin, f"{stat.st_size} {stat.st_mtime_ns}", name))
    return files


def _remote_files(source: str, name: str) -> list[File]:
    system, root = _filesystem(source)
    try:
        found = system.find(root, detail=True) or {root: system.info(root)}
    except (OSError, ValueError) as error:
        raise PunaError(f"corpus.source = {source!r} cannot be listed: {error}") from error
    files = []
    for path, info in found.items():
        origin = path.removeprefix(root).strip("/") or path.rpartition("/")[2]
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        files.append(File(str(system.unstrip_protocol(path)), origin, version, name))
    return files


def _crawl(crawl: str, base: str, name: str) -> list[File]:
    """A crawl's WARC files never change, so their names are all there is to their version."""
    listing = f"{base}/crawl-data/{crawl}/warc.paths.gz"
    try:
        with fsspec.open(listing, "rt", compression="gzip", encoding="utf-8") as lines:
            paths = [line.strip() for line in lines if line.strip()]  # type: ignore[union-attr]
    except (OSError, ValueError, ImportError) as error:
        raise PunaError(
            f"corpus.source = '{CRAWL}{crawl}': {listing} cannot be read ({error or type(error).__name__}); crawls are "
            "named like CC-MAIN-2024-10, and https and s3 need pip install 'puna[remote]'"
        ) from error
    return sorted((File(f"{base}/{path}", path, "", name) for path in paths), key=lambda file: file.name)


def _filesystem(address: str) -> tuple[Any, str]:
    """The file system that an address names, and the path in it."""
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise PunaError(f"{address} cannot be opened: {error}; https and s3 need pip install 'puna[remote]'") from error


def _fetch(address: str, path: Path) -> None:
    system, place = _filesystem(address)
    for attempt in range(ATTEMPTS):
        try:
            return system.get_file(place, str(path))
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has its own for a place that does not answer
            if attempt == ATTEMPTS - 1:
                raise PunaError(
                    f"{address} cannot be fetched: {type(error).__name__}: {error}; finished shards are kept, so run "
                    "again when the place answers"
                ) from error
            time.sleep(4**attempt)
