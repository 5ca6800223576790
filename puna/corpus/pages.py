"""The first pass: files to texts, page by page.

    read -> block -> extract -> language        pages.parquet, a row for every record of the files
                                                keys.parquet, a row for every page left: what finds its copies

A page's row in its shard is its number for good: doc = shard << 32 | row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import xxhash

from puna.corpus.dedup import KEYS, url_key
from puna.corpus.document import PAGES, Document, Table
from puna.corpus.engine import Rows
from puna.corpus.extract import UnusablePageError, extract
from puna.corpus.language import identify, unwanted
from puna.corpus.minhash import text_keys
from puna.corpus.read import RawPage, SetAside, read
from puna.corpus.safety import blocked_url
from puna.corpus.source import File
from puna.corpus.steps import BATCH, DEADLY, each, take
from puna.recipe import Corpus

SHARD_FILES = 64  # HTML files in a shard; a file of many pages is one of its own
TOO_SHORT_TO_TELL = 50  # characters of a text whose language is not asked for


@dataclass(frozen=True)
class PageShard:
    """Files to read."""

    number: int
    files: list[File]
    limit: int | None
    """Pages to read at most."""
    knobs: Corpus

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].path}{more}"


@dataclass
class Tools:
    knobs: Corpus
    raw: dict[int, RawPage] = field(default_factory=dict)
    """Of the pages of a batch, by doc."""


def make_shards(files: list[File], knobs: Corpus) -> list[PageShard]:
    """Cut a source into shards. `max_documents` takes pages by the hash of their name, archives from the start."""
    pages = [file for file in files if file.kind == "html"]
    archives = [file for file in files if file.kind != "html"]
    limit = None
    if knobs.max_documents:
        room = -(-knobs.max_documents // 2) if archives and pages else knobs.max_documents
        pages, archives = choose(pages, room), choose(archives, room)
        limit = room // len(archives) if archives else None
    groups = [[file] for file in archives]
    groups += [pages[start : start + SHARD_FILES] for start in range(0, len(pages), SHARD_FILES)]
    return [
        PageShard(number, group, limit if number < len(archives) else None, knobs)
        for number, group in enumerate(groups)
    ]


def choose(files: list[File], count: int) -> list[File]:
    """Some files, the same for the same names, in their order."""
    names = [xxhash.xxh3_64_digest(f"{file.source}\0{file.name}".encode()) for file in files]
    return [files[place] for place in sorted(sorted(range(len(files)), key=names.__getitem__)[:count])]


def make_pages(shard: PageShard, folder: Path, rows: Rows) -> None:
    """Write pages.parquet and keys.parquet of the rows."""
    with Table(folder / "pages.parquet", PAGES) as pages, Table(folder / "keys.parquet", KEYS) as keys:
        records = _documents(shard, folder, rows)
        while batch := list(islice(records, BATCH)):
            tools = Tools(shard.knobs, {page.doc: raw for page, raw in batch if raw})
            documents = [page for page, _ in batch]
            take(STEPS, documents, tools)
            keys.add_table(keys_of([page for page in documents if not page.reason], shard.knobs))
            for page in documents:
                pages.add(page)


def count_pages(shard: PageShard, folder: Path) -> int:
    """Rows of a shard that is not made yet."""
    return sum(1 for _ in _records(shard, folder))


def _records(shard: PageShard, scratch: Path) -> Iterator[tuple[File, RawPage | SetAside]]:
    left = shard.limit
    for file in shard.files:
        for item in read(file, scratch, shard.knobs):
            if left == 0:
                return
            left = left and left - 1
            yield file, item


def _documents(shard: PageShard, scratch: Path, rows: Rows) -> Iterator[tuple[Document, RawPage | None]]:
    """The wanted rows, and what was read for those that are pages."""
    for row, (file, item) in enumerate(_records(shard, scratch)):
        if row >= rows.end:
            return
        if row < rows.first:
            continue
        page = Document(shard.number << 32 | row, url_id(item.url), item.url, file.source, item.origin, item.place)
        if isinstance(item, SetAside):
            page.drop("read", item.reason, item.detail)
        elif row in rows.poison:
            page.drop("extract", "poison-page", DEADLY)
        else:
            page.date, page.part = item.date or "", item.part or ""
        yield page, item if isinstance(item, RawPage) else None


def url_id(url: str) -> str:
    """The name of a document: 16 hexadecimal digits of its address's hash."""
    return xxhash.xxh3_64_hexdigest(url.encode("utf-8", "surrogatepass"))


# -- the steps ---------------------------------------------------------------------------------------------------------


def block(page: Document, tools: Tools) -> None:
    if blocked := blocked_url(page.url, tools.knobs):
        page.drop("block", *blocked)


def extract_text(page: Document, tools: Tools) -> None:
    raw = tools.raw[page.doc]
    if isinstance(raw.html, str):
        page.text, page.title = raw.html, raw.title
    else:
        try:
            content = extract(raw.html, raw.url, raw.charset)
        except UnusablePageError as error:
            return page.drop("extract", "too-deep", str(error))
        page.text, page.title, page.published = content.text, content.title, content.date or ""
        page.canonical = content.url if content.url and content.url != raw.url else ""
    page.characters = len(page.text)
    if not page.text:
        page.drop("extract", "no-text")
    return None


def tell_language(page: Document, tools: Tools) -> None:
    if len(page.text) < TOO_SHORT_TO_TELL:  # the filter has its own word on them
        return
    page.language, page.language_score = identify(page.text, tools.knobs.language_model)
    if reason := unwanted(page.language, page.language_score, tools.knobs):
        page.drop("language", reason, page.language)


STEPS = (("block", each(block)), ("extract", each(extract_text)), ("language", each(tell_language)))


def keys_of(pages: list[Document], knobs: Corpus) -> pa.Table:
    """What finds the copies of pages: rows of KEYS."""
    keys = text_keys([page.text for page in pages], knobs)
    columns = {name: [getattr(page, name) for page in pages] for name in ("doc", "date", "language", "characters")}
    columns |= {
        "url_key": [url_key(page.url) for page in pages],
        "digest": keys.digests,
        "signature": [signature.tobytes() for signature in keys.signatures],
    }
    return pa.table([columns[name] for name in KEYS.names], schema=KEYS)
