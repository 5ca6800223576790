"""The second pass: texts to documents, and the survey of the texts that it needs.

    survey     lines.parquet, tokens.parquet, rows.parquet     counts over the pages that repeat no other
    pass 2     lines -> filter -> safety -> pii -> quality -> decontaminate

Rows are those of the first pass, each with its verdict.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puna.corpus import decontaminate, quality
from puna.corpus.document import DOCUMENTS, Document, Table, batches_of
from puna.corpus.engine import Rows
from puna.corpus.filters import Text, reason_to_drop
from puna.corpus.lines import COUNTS, HASHES, FrequentLines, buckets, count_lines, line_keys
from puna.corpus.outliers import TokenCounts, TokenDistribution, load_distributions, outlier_words
from puna.corpus.parts import part_of
from puna.corpus.pii import replace_pii, too_much_pii
from puna.corpus.safety import dirty_words, unsafe_scores
from puna.corpus.steps import DEADLY, each, take
from puna.recipe import Corpus

ROWS = pa.schema({"doc": pa.int64(), "bucket": pa.int32(), "lines": pa.list_(pa.uint64())})
"""The pages whose frequent lines go, the bucket and the hashed lines of each."""


@dataclass(frozen=True)
class TextShard:
    """Pages of the first pass, and what was found over all shards."""

    number: int
    pages: Path
    duplicates: Path
    """Rows of (doc, step, reason, detail), sorted by doc."""
    knobs: Corpus
    before: dict[str, int]
    """Pages by language in the shards before this one that repeat no other."""
    survey: Path | None = None
    """Folder of this shard's survey."""
    frequent: Path | None = None
    """Folder of lines.parquet and tokens.parquet of all surveys."""
    evaluation: Path | None = None
    """Folder of the index of evaluation examples."""

    def __str__(self) -> str:
        return str(self.pages)


def count_texts(shard: TextShard, folder: Path) -> int:
    return pq.read_metadata(shard.pages).num_rows


def _duplicates_in(shard: TextShard) -> dict[int, tuple[str, str, str]]:
    first = shard.number << 32
    bounds = [("doc", ">=", first), ("doc", "<", first + (1 << 32))]
    rows: list[dict[str, Any]] = pq.read_table(shard.duplicates, filters=bounds).to_pylist()
    return {row["doc"]: (row["step"], row["reason"], row["detail"]) for row in rows}


def _batches(shard: TextShard, rows: Rows, step: str) -> Iterator[list[Document]]:
    """The wanted rows, those dropped that repeat others."""
    duplicates = _duplicates_in(shard)
    for batch in batches_of(shard.pages):
        pages = [page for page in batch if rows.first <= page.doc & 0xFFFFFFFF < rows.end]
        for page in pages:
            if duplicate := duplicates.get(page.doc):
                page.drop(*duplicate)
            elif page.doc & 0xFFFFFFFF in rows.poison and not page.reason:
                page.drop(step, "poison-page", DEADLY)
        if pages:
            yield pages


# -- survey ------------------------------------------------------------------------------------------------------------


@dataclass
class Survey:
    """What is known of the pages of a batch, by doc."""

    knobs: Corpus
    texts: dict[int, Text] = field(default_factory=dict)
    apart: dict[int, bool] = field(default_factory=dict)
    """Whether all its lines stay: code repeats short lines with good reason, and the paper has a pipeline apart for
    code and mathematics."""


def examine(page: Document, survey: Survey) -> None:
    text = Text(page.text, page.language)
    assert text.hashes is not None  # made here, where an error costs this page only
    survey.texts[page.doc] = text
    survey.apart[page.doc] = part_of(page.text, page.language, page.part) in ("code", "math")


def make_survey(shard: TextShard, folder: Path, rows: Rows) -> None:
    """Count the lines and the words of the pages that repeat no other."""
    tokens = TokenCounts()
    counted = [COUNTS.empty_table()]
    before = Counter(shard.before)
    rows_of_batches = [ROWS.empty_table()]
    for batch in _batches(shard, rows, "lines"):
        pages = [page for page in batch if not page.reason]
        places = buckets([page.language for page in pages], before, shard.knobs).tolist()
        here = {page.doc: place for page, place in zip(pages, places)}
        before.update(page.language for page in pages)
        survey = Survey(shard.knobs)
        take((("lines", each(examine)),), pages, survey)
        pages = [page for page in pages if not page.reason]
        for page in pages:
            tokens.add(survey.texts[page.doc])
        web = [page for page in pages if not survey.apart[page.doc]]
        if shard.knobs.line_repeats:
            places = np.array([here[page.doc] for page in web], np.int32)
            lines = line_keys([page.text for page in web])
            counted.append(count_lines(lines, [page.language for page in web], places))
            rows_of_batches.append(pa.table([[page.doc for page in web], places, lines], schema=ROWS))
    summed = pa.concat_tables(counted).group_by(COUNTS.names[:3]).aggregate([("count", "sum")])
    summed = summed.rename_columns(COUNTS.names).sort_by([(name, "ascending") for name in COUNTS.names[:3]])
    pq.write_table(summed, folder / "lines.parquet", **HASHES)
    pq.write_table(tokens.table(), folder / "tokens.parquet")
    pq.write_table(pa.concat_tables(rows_of_batches), folder / "rows.parquet", **HASHES)


# -- pass 2 ------------------------------------------------------------------------------------------------------------


@dataclass
class Tools:
    knobs: Corpus
    rows: pa.Table
    """Of ROWS."""
    row_of: dict[int, int]
    """The place of a page among them."""
    frequent: FrequentLines | None
    distributions: dict[str, TokenDistribution]
    checker: decontaminate.Checker | None


def make_texts(shard: TextShard, folder: Path, rows: Rows) -> None:
    """Write the documents.parquet of the rows, and which evaluation examples were seen in them."""
    assert shard.survey
    assert shard.frequent
    table = pq.read_table(shard.survey / "rows.parquet").combine_chunks()
    tools = Tools(
        shard.knobs,
        table,
        {doc: row for row, doc in enumerate(table["doc"].to_pylist())},
        _frequent_lines(shard.frequent / "lines.parquet") if shard.knobs.line_repeats else None,
        _distributions(shard.frequent / "tokens.parquet"),
        _checker(shard),
    )
    with Table(folder / "documents.parquet", DOCUMENTS) as documents:
        for pages in _batches(shard, rows, "filter"):
            take(STEPS, pages, tools)
            for page in pages:
                documents.add(page)
    if tools.checker:
        before, after = tools.checker.seen()
        np.savez(folder / "seen.npz", before=before, after=after)


@cache
def _frequent_lines(path: Path) -> FrequentLines:
    return FrequentLines(path)


@cache
def _distributions(path: Path) -> dict[str, TokenDistribution]:
    return load_distributions(pq.read_table(path))


def _checker(shard: TextShard) -> decontaminate.Checker | None:
    if shard.evaluation is None:
        return None
    return decontaminate.Checker(decontaminate.load_index(shard.evaluation), shard.knobs)


def drop_lines(pages: list[Document], tools: Tools) -> None:
    if not tools.frequent:
        return
    web = [page for page in pages if page.doc in tools.row_of]
    rows = tools.rows.take(pa.array([tools.row_of[page.doc] for page in web], pa.int64()))
    lines, places = rows["lines"].combine_chunks(), rows["bucket"].to_numpy()
    texts, languages = [page.text for page in web], [page.language for page in web]
    for page, text in zip(web, tools.frequent.drop(texts, lines, languages, places)):
        page.set_text(text)
        if not text:
            page.drop("lines", "only-repeated-lines")


def filter_text(page: Document, tools: Tools) -> None:
    text = Text(page.text, page.language)
    reason = (
        reason_to_drop(text, tools.knobs)
        or dirty_words(text, tools.knobs)
        or outlier_words(text, tools.distributions, tools.knobs)
    )
    if reason:
        page.drop("filter", reason)


def drop_unsafe(pages: list[Document], tools: Tools) -> None:
    scores = unsafe_scores([page.text for page in pages], tools.knobs)
    for page, score in zip(pages, [] if scores is None else scores.tolist()):
        if score > tools.knobs.unsafe_threshold:
            page.drop("safety", "unsafe-page", f"{score:.3f}")


def hide_personal_data(page: Document, tools: Tools) -> None:
    text, found = replace_pii(page.text, page.language, tuple(tools.knobs.pii))
    if reason := too_much_pii(found, Text(text, page.language), tools.knobs):
        return page.drop("pii", reason)
    return page.set_text(text)


def judge_quality(pages: list[Document], tools: Tools) -> None:
    """Quality, topic and part."""
    judgements = quality.judge([page.text for page in pages], [page.language for page in pages], tools.knobs)
    for page, judgement in zip(pages, judgements):
        page.quality, page.topic = judgement.quality, judgement.topic
        page.part = part_of(page.text, page.language, page.part or judgement.part)
        if judgement.reason:
            page.drop("quality", judgement.reason, judgement.detail)


def decontaminate_text(page: Document, tools: Tools) -> None:
    if overlap := tools.checker and tools.checker(page.text):
        if overlap.text is None:
            page.drop("decontaminate", "evaluation-overlap", overlap.detail)
        else:
            page.set_text(overlap.text)


STEPS = (
    ("lines", drop_lines),
    ("filter", each(filter_text)),
    ("safety", drop_unsafe),
    ("pii", each(hide_personal_data)),
    ("quality", judge_quality),
    ("decontaminate", each(decontaminate_text)),
)


# -- texts again, for the global steps ---------------------------------------------------------------------------------


class Texts:
    """Texts of documents by their numbers, read from the first pass's files when they are asked for."""

    def __init__(self, pages: list[Path]) -> None:
        self.pages = pages

    def __call__(self, docs: np.ndarray) -> list[str]:
        """The texts in the order of `docs`; each group of rows is read once a call."""
        texts: dict[int, str] = {}
        wanted = np.unique(docs)
        for shard in np.unique(wanted >> 32).tolist():
            rows = (wanted[wanted >> 32 == shard] & 0xFFFFFFFF).astype(np.int64)
            texts |= {shard << 32 | row: text for row, text in _texts_at(self.pages[shard], rows)}
        return [texts[doc] for doc in docs.tolist()]


def _texts_at(path: Path, rows: np.ndarray) -> Iterator[tuple[int, str]]:
    with pq.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            here = rows[(rows >= first) & (rows < last)]
            if len(here):
                column = file.read_row_group(group, ["text"])["text"]
                yield from ((row, column[row - first].as_py()) for row in here.tolist())
            first = last
