"""Records that users bring: examples, labels, evaluation sets. JSONL, Parquet or text, one file or a folder of them."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow.parquet as pq

from puna.errors import PunaError

PACKED = (".gz", ".xz", ".bz2")
LINES = (".jsonl", ".ndjson")
TEXT = (".txt", ".md")
BATCH = 1000  # rows of a Parquet file that are in memory at once


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Every record of a file, or of the files of a folder in the order of their names; a text file is one record.

    Remote addresses are opened by fsspec. PunaError names the file, and the line that is no JSON object.
    """
    for file in list_files(path):
        kind = _suffix(file)
        if kind == ".parquet":
            with fsspec.open(file, "rb") as handle:
                for batch in pq.ParquetFile(handle).iter_batches(BATCH):
                    yield from batch.to_pylist()
        else:
            with fsspec.open(file, "rt", compression="infer", encoding="utf-8", errors="replace") as handle:
                if kind in TEXT:
                    yield {"text": handle.read()}  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    yield from _read_lines(handle, file)


def read_texts(path: str | Path, field: str = "text") -> Iterator[str]:
    """One field of every record; PunaError where a record has no such text."""
    for number, record in enumerate(read_records(path), 1):
        text = record.get(field)
        if not isinstance(text, str):
            raise PunaError(f"{path}: record {number} has no text in the field {field!r}; it has {', '.join(record)}")
        yield text


def list_files(path: str | Path) -> list[str]:
    """The files that `path` means; PunaError where there is none that can be read."""
    path = str(path)
    if "://" in path or not Path(path).is_dir():
        if "://" not in path and not Path(path).is_file():
            raise PunaError(f"{path}: no such file or folder")
        files = [path]
    else:
        files = sorted(str(p) for p in Path(path).rglob("*") if p.is_file() and _known(str(p)))
    if not files or not all(map(_known, files)):
        known = ", ".join((*LINES, ".parquet", *TEXT))
        raise PunaError(f"{path}: no records to read; these are: {known}, packed too ({', '.join(PACKED)})")
    return files


def _suffix(file: str) -> str:
    name = PurePosixPath(file)
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix.lower()


def _known(file: str) -> bool:
    return _suffix(file) in (*LINES, ".parquet", *TEXT)


def _read_lines(handle: Any, file: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(handle, 1):
        if line.isspace():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise PunaError(f"{file}, line {number}: no JSON ({error})") from error
        if not isinstance(record, dict):
            raise PunaError(f"{file}, line {number}: no JSON object")
        yield record
