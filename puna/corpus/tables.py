"""Small tables of hashes and ids: made in DuckDB, which spills to disk, and passed on as Parquet or in batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puna.recipe import Corpus

BATCH = 1 << 16  # rows


def connect(knobs: Corpus, work: Path) -> duckdb.DuckDBPyConnection:
    """A database that holds at most `knobs.memory_gb` in memory and the rest under `work`."""
    return duckdb.connect(
        config={
            "memory_limit": f"{knobs.memory_gb}GB",
            "threads": knobs.workers,
            "temp_directory": str(work / "spilled"),
        }
    )


def scan(paths: Path | Iterable[Path], options: str = "") -> str:
    """SQL that reads Parquet files."""
    listed = [paths] if isinstance(paths, Path) else paths
    return f"read_parquet([{', '.join(map(quote, listed))}]{options})"


def quote(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def columns_of(db: duckdb.DuckDBPyConnection, query: str) -> Iterator[list[np.ndarray]]:
    """The columns of a query's result, numbers without nulls, a batch at a time."""
    for batch in db.cursor().sql(query).to_arrow_reader(BATCH):
        yield [column.to_numpy(zero_copy_only=False) for column in batch.columns]


def write(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch | dict]) -> Path:
    """Batches to a Parquet file, put in place when it is whole. Its bytes depend only on the rows."""
    aside = path.with_suffix(".aside")
    with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        rows: list[pa.RecordBatch] = []
        for batch in batches:
            rows.append(batch if isinstance(batch, pa.RecordBatch) else pa.record_batch(batch, schema))
            if sum(map(len, rows)) >= BATCH:
                rows = _write_full(writer, rows)
        writer.write_table(pa.Table.from_batches(rows, schema))
    aside.rename(path)
    return path


def _write_full(writer: pq.ParquetWriter, rows: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Write row groups of BATCH rows; what is left over."""
    table = pa.Table.from_batches(rows)
    full = len(table) - len(table) % BATCH
    writer.write_table(table.slice(0, full), row_group_size=BATCH)
    return table.slice(full).to_batches()
