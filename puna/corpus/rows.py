"""Rows of JSONL and Parquet files, one after the other; of a broken one the (reason, detail), and on to the next."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 256
COLUMNS = ("html", "url", "title", "date")

Row = dict[str, Any] | tuple[str, str]


def json_rows(path: Path, max_bytes: int) -> Iterator[Row]:
    """The objects of a JSONL file: plain, or compressed as its suffix says (.gz, .zst, .xz)."""
    limit = 2 * max_bytes + 65_536  # escapes may double a text, and there are other keys beside it
    with _open(path) as lines:
        while True:
            try:
                line = lines.readline(limit)
                size = len(line)
                while line and not line.endswith(b"\n") and (more := lines.readline(limit)):
                    size += len(more)  # over the limit: go to its end, keep only its size
                    line = more if more.endswith(b"\n") else line
            except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
                yield "truncated", str(error)
                return
            if not line:
                return
            yield ("oversize", f"a line of {size:,} bytes") if size > limit else _parse(line)


def _parse(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "bad-row", f"no JSON: {error}"
    return row if isinstance(row, dict) else ("bad-row", "no JSON object")


def parquet_rows(path: Path, text_column: str) -> Iterator[Row]:
    """The rows of a Parquet file, of the columns that tell of a page."""
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in dict.fromkeys((text_column, *COLUMNS)) if name in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, columns=columns):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        yield "unreadable", str(error)


def _open(path: Path) -> IO[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.open(path))
    if suffix == ".zst":
        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(str(path), "zstd")))  # type: ignore[arg-type]
    return path.open("rb")
