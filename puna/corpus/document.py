"""Parquet files written a few rows at a time, and the columns of the files between the passes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1000
"""Rows kept in memory at once; of a page of the first pass, row r is in group r // ROW_GROUP."""
EXCERPT = 2000
"""Characters kept of a dropped text."""

PAGES = pa.schema(
    {
        "doc": pa.int64(),
        "id": pa.string(),
        "url": pa.string(),
        "source": pa.string(),
        "origin": pa.string(),
        "place": pa.int64(),
        "date": pa.string(),
        "published": pa.string(),
        "canonical": pa.string(),
        "part": pa.string(),
        "title": pa.string(),
        "language": pa.string(),
        "language_score": pa.float32(),
        "characters": pa.int64(),
        "text": pa.large_string(),
        "step": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)
DOCUMENTS = pa.schema([*PAGES, ("quality", pa.float32()), ("topic", pa.string())])
"""What the second pass adds."""


@dataclass(slots=True)
class Document:
    """All that is known of a page, the columns of DOCUMENTS; one with a `reason` is dropped, at `step`."""

    doc: int
    """Shard number << 32 | row in the shard."""
    id: str
    """Hash of the address, 16 hexadecimal digits."""
    url: str
    source: str = ""
    """The name that the recipe gives to the source."""
    origin: str = ""
    place: int = 0
    date: str = ""
    """ISO 8601, UTC: when it was fetched."""
    published: str = ""
    """The day that the page states, ISO 8601."""
    canonical: str = ""
    """The address that the page states, where it is another."""
    part: str = ""
    title: str = ""
    language: str = ""
    language_score: float = 0.0
    characters: int = 0
    """Of the whole text, also where only an excerpt is kept."""
    text: str = ""
    step: str = ""
    reason: str = ""
    detail: str = ""
    quality: float | None = None
    """The lowest score of the quality models, if there are any."""
    topic: str = ""

    def set_text(self, text: str) -> None:
        self.text, self.characters = text, len(text)

    def drop(self, step: str, reason: str, detail: str = "") -> None:
        self.step, self.reason, self.detail = step, reason, detail
        self.text = self.text[:EXCERPT]


class Table(AbstractContextManager["Table"]):
    """A Parquet file in the making, in groups of ROW_GROUP; the same rows give the same bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")
        self.rows: list[Any] = []
        self.pending = schema.empty_table()

    def add(self, row: Any) -> None:
        """An object with an attribute for each column."""
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._add_rows()

    def add_table(self, table: pa.Table) -> None:
        """Rows of a table that has the columns, perhaps among others."""
        self.pending = pa.concat_tables([self.pending, table.select(self.schema.names).cast(self.schema)])
        while self.pending.num_rows >= ROW_GROUP:
            self._write(self.pending.slice(0, ROW_GROUP))
            self.pending = self.pending.slice(ROW_GROUP)

    def _add_rows(self) -> None:
        columns = {name: [getattr(row, name) for row in self.rows] for name in self.schema.names}
        self.add_table(pa.table(columns, schema=self.schema))
        self.rows = []

    def _write(self, table: pa.Table) -> None:
        # one chunk a column: how rows arrived must not show in the pages of the file
        self.writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP)

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._add_rows()
            if self.pending.num_rows:
                self._write(self.pending)
        self.writer.close()


def batches_of(path: Path) -> Iterator[list[Document]]:
    """The rows of a file of PAGES, some at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            yield [Document(**row) for row in batch.to_pylist()]
