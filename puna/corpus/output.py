"""What the corpus stage leaves: documents by part, those held out, those dropped, and the count of all.

Shards are read one after the other in their order and written as they come, so memory does not grow with their number.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from puna.corpus.account import Samples
from puna.corpus.document import DOCUMENTS, EXCERPT, ROW_GROUP, Table
from puna.corpus.mix import keeps, topic_fractions
from puna.corpus.read import PARTS
from puna.recipe import Corpus

STEPS = (
    *("read", "block", "extract", "language", "url", "exact", "near"),
    *("lines", "filter", "safety", "pii", "quality", "decontaminate", "topic"),
)
KEPT = (
    *(
        "id",
        "url",
        "source",
        "origin",
        "place",
        "date",
        "published",
        "canonical",
        "part",
        "title",
        "language",
        "language_score",
    ),
    *("quality", "topic", "characters", "text"),
)
DROPPED = (
    *("url", "source", "origin", "place", "step", "reason", "detail", "title", "language", "characters", "text"),
)
KEPT_ROWS = pc.field("reason") == ""


@dataclass
class Survey:
    """What must be known of all pages before the first is written."""

    kept: int = 0
    lowest: str = ""
    """The first of the ids of kept pages."""
    topics: Counter[str] = field(default_factory=Counter)
    """Characters of kept pages."""


def survey(shards: Sequence[Path]) -> Survey:
    """Count what the second pass kept."""
    found = Survey()
    for table in _groups(shards, ["id", "topic", "reason", "characters"]):
        kept = table.filter(KEPT_ROWS)
        if kept.num_rows:
            found.kept += kept.num_rows
            lowest = min(kept["id"].to_pylist())
            found.lowest = min(found.lowest or lowest, lowest)
            for row in kept.group_by("topic").aggregate([("characters", "sum")]).to_pylist():
                found.topics[row["topic"]] += row["characters_sum"]
    return found


def held_out_bound(found: Survey, share: float) -> str:
    """Documents whose id is lower are held out: a share of them, one at least if there are two."""
    bound = f"{int(share * 2**64):016x}" if share < 1 else "g"
    if share and found.kept > 1 and found.lowest >= bound:
        return found.lowest + "0"  # above the lowest, below the next
    return bound


def write(out: Path, shards: Sequence[Path], knobs: Corpus) -> tuple[dict[str, Any], Samples]:
    """Write documents/PART.parquet, held_out.parquet, dropped.parquet and funnel.json; its content, and some rows."""
    samples = Samples()
    found = survey(shards)
    bound = held_out_bound(found, knobs.held_out)
    fractions = topic_fractions(found.topics, knobs)
    drops: Counter[tuple[str, str]] = Counter()
    sizes: dict[str, defaultdict[str, Counter[str]]] = {name: defaultdict(Counter) for name in ("part", "language")}
    (out / "documents").mkdir()
    with ExitStack() as stack:
        paths = {part: out / "documents" / f"{part}.parquet" for part in PARTS}
        kept = {part: stack.enter_context(Table(path, _schema(KEPT))) for part, path in paths.items()}
        held_out = stack.enter_context(Table(out / "held_out.parquet", _schema(KEPT)))
        dropped = stack.enter_context(Table(out / "dropped.parquet", _schema(DROPPED)))
        for table in _groups(shards, DOCUMENTS.names):
            table = sample_topics(table, fractions)
            samples.add(table)
            counts = table.group_by(["step", "reason"]).aggregate([([], "count_all")]).to_pylist()
            drops.update({(row["step"], row["reason"]): row["count_all"] for row in counts})
            dropped.add_table(table.filter(~KEPT_ROWS))
            documents = table.filter(KEPT_ROWS)
            apart, rest = documents.filter(pc.field("id") < bound), documents.filter(pc.field("id") >= bound)
            _count(rest, "", sizes)
            _count(apart, "held_out_", sizes)
            held_out.add_table(apart)
            for part in PARTS:
                kept[part].add_table(rest.filter(pc.field("part") == part))
    funnel = {
        "steps": list(_steps(drops)),
        "parts": {part: _sizes(sizes["part"][part]) for part in PARTS},
        "languages": {language: _sizes(count) for language, count in sorted(sizes["language"].items())},
    }
    write_json(out / "funnel.json", funnel)
    return funnel, samples


def sample_topics(table: pa.Table, fractions: Mapping[str, float]) -> pa.Table:
    """Drop documents of the topics that there is too much of (section 3.1.2)."""
    if all(fraction >= 1 for fraction in fractions.values()):
        return table
    rows = table.to_pylist()
    kept = keeps([row["id"] for row in rows], [row["topic"] for row in rows], fractions)
    for row, stays in zip(rows, kept.tolist()):
        if not row["reason"] and not stays:
            row |= {"step": "topic", "reason": "over-represented", "detail": row["topic"]}
            row["text"] = row["text"][:EXCERPT]
    return pa.Table.from_pylist(rows, table.schema)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _groups(shards: Sequence[Path], columns: list[str]) -> Iterator[pa.Table]:
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=columns):
                yield pa.Table.from_batches([batch])


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([DOCUMENTS.field(name) for name in columns])


def _steps(drops: Counter[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Pages in and out of each step."""
    left = drops.total()
    for step in STEPS:
        dropped = {reason: count for (at, reason), count in sorted(drops.items()) if at == step}
        yield {"step": step, "in": left, "out": left - sum(dropped.values()), "dropped": dropped}
        left -= sum(dropped.values())


def _count(table: pa.Table, prefix: str, sizes: dict[str, defaultdict[str, Counter[str]]]) -> None:
    """Add documents and characters by part and by language."""
    for column, counts in sizes.items():
        for row in table.group_by(column).aggregate([([], "count_all"), ("characters", "sum")]).to_pylist():
            counts[row[column]][f"{prefix}documents"] += row["count_all"]
            counts[row[column]][f"{prefix}characters"] += row["characters_sum"]


def _sizes(count: Counter[str]) -> dict[str, int]:
    return {name: count[name] for name in ("documents", "characters", "held_out_documents", "held_out_characters")}
