"""Read raw pages from the files of a source; what cannot be read is set aside with a reason, and reading goes on.

unreadable      a file that cannot be opened, or bytes in an archive that are no record
truncated       a record or a compressed file that ends too early, or that the crawler cut
bad-uri         a record without an http(s) address
bad-http        a payload without HTTP headers, or whose chunks or compression are broken
http-status     an answer other than 200 OK
not-html        an image, a script, a feed ...
revisit         a record that says that the page was as it had been before
bad-row         a line that is no JSON object, or a row without text
oversize        more bytes than a page may have
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from puna.corpus.rows import json_rows, parquet_rows
from puna.corpus.source import File
from puna.recipe import Corpus

PARTS = ("general", "math", "code", "multilingual")
HTML_TYPES = ("text/html", "application/xhtml+xml")
HTML_START = re.compile(rb"<(!doctype html|html|head|title|meta|body|div|table|h1|p)\b", re.IGNORECASE)
MEMBER_MAGIC = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
PAGE_TYPES = (WarcRecordType.response, WarcRecordType.resource)
BLOCK = 1 << 20


@dataclass(frozen=True)
class RawPage:
    """A page as it came over the wire, or a text that needs no extraction."""

    url: str
    html: bytes | str
    """Bytes of HTML; characters are plain text already."""
    charset: str | None
    """What the HTTP header says, if anything."""
    date: str | None
    """When it was fetched, or its file was last changed: ISO 8601, UTC."""
    part: str | None
    """The part of the corpus that its folder names."""
    origin: str
    """The file it was read from, relative to the source."""
    place: int = 0
    """Where in that file: the byte at which the record begins in an archive, else the number of the row."""
    title: str = ""
    """Of a text; a page has its own."""


@dataclass(frozen=True)
class SetAside:
    """Something that cannot be used."""

    origin: str
    reason: str
    detail: str = ""
    url: str = ""
    place: int = 0


def read(file: File, scratch: Path, knobs: Corpus) -> Iterator[RawPage | SetAside]:
    """The pages of one file; a remote one is copied into `scratch` meanwhile. Raises only what File.local does for a
    place that does not answer."""
    try:
        with file.local(scratch) as path:
            if file.kind == "warc":
                yield from _read_warc(path, file.name, knobs.max_page_bytes)
            elif file.kind == "html":
                yield _read_html(path, file.name, knobs.max_page_bytes)
            else:
                yield from _read_rows(path, file, knobs)
    except OSError as error:
        yield SetAside(file.name, "unreadable", str(error).replace(str(scratch), ""))


def read_original(file: File, place: int, scratch: Path, knobs: Corpus) -> RawPage | None:
    """The page at a place again, for one who wants to look at it."""
    if file.kind == "warc":
        with file.open() as handle:
            handle.seek(place)
            record = next(iter(_iterate(handle)))
            page = _page_of(record, file.name, place, knobs.max_page_bytes)
    else:
        page = next((item for item in read(file, scratch, knobs) if item.place == place), None)
    return page if isinstance(page, RawPage) else None


def _read_html(path: Path, origin: str, max_bytes: int) -> RawPage | SetAside:
    url = _address(origin.removesuffix(".gz"))
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            html = handle.read(max_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return SetAside(origin, "truncated", str(error), url)
    if len(html) > max_bytes:
        return SetAside(origin, "oversize", f"more than {max_bytes:,} bytes", url)
    return RawPage(url, html, None, _iso(datetime.fromtimestamp(path.stat().st_mtime, UTC)), _folder(origin), origin)


def _read_rows(path: Path, file: File, knobs: Corpus) -> Iterator[RawPage | SetAside]:
    rows = json_rows(path, knobs.max_page_bytes) if file.kind == "jsonl" else parquet_rows(path, knobs.text_column)
    for place, row in enumerate(rows):
        if isinstance(row, tuple):
            yield SetAside(file.name, *row, place=place)
        else:
            yield _page_of_row(row, file.name, place, knobs)


def _page_of_row(row: dict[str, Any], origin: str, place: int, knobs: Corpus) -> RawPage | SetAside:
    said = {key: value if isinstance(value := row.get(key), str) else "" for key in ("url", "title", "date")}
    url = said["url"].strip() or f"{_address(origin)}?row={place}"
    text = row.get(knobs.text_column)
    html = row.get("html")
    if not isinstance(text, str):
        text = html.encode("utf-8", "replace") if isinstance(html, str) else html
    if not isinstance(text, str | bytes):
        return SetAside(origin, "bad-row", f"no text in {knobs.text_column!r} or 'html'", url, place)
    if len(text) > knobs.max_page_bytes:
        return SetAside(origin, "oversize", f"{len(text):,} characters", url, place)
    charset = "utf-8" if isinstance(html, str) else None
    return RawPage(url, text, charset, said["date"] or None, _folder(origin), origin, place, said["title"])


# -- WARC --------------------------------------------------------------------------------------------------------------


def _read_warc(path: Path, origin: str, max_bytes: int) -> Iterator[RawPage | SetAside]:
    for found in _records(path, origin):
        if isinstance(found, SetAside):
            yield found
        else:
            record, place = found
            yield _page_of(record, origin, place, max_bytes)


def _page_of(record: WarcRecord, origin: str, place: int, max_bytes: int) -> RawPage | SetAside:
    url = (record.headers.get("WARC-Target-URI") or "").strip().strip("<>")  # wget wrote <...>
    if record.record_type == WarcRecordType.revisit:
        return SetAside(origin, "revisit", record.headers.get("WARC-Refers-To-Target-URI") or "", url, place)
    page = _read_record(record, url, max_bytes)
    if isinstance(page, str):
        reason, _, detail = page.partition(": ")
        return SetAside(origin, reason, detail, url, place)
    html, charset = page
    return RawPage(url, html, charset, _iso(record.record_date) if record.record_date else None, None, origin, place)


def _records(path: Path, origin: str) -> Iterator[tuple[WarcRecord, int] | SetAside]:
    """Records of pages, each with its place. After broken bytes, reading goes on at the next compressed member."""
    if path.stat().st_size == 0:
        yield SetAside(origin, "unreadable", "the file is empty")
        return
    magic = MEMBER_MAGIC.get(path.suffix.lower())
    records = 0
    with path.open("rb") as handle:
        start, complained_at = 0, -1
        while start >= 0:
            handle.seek(start)
            last = start
            try:
                for record in _iterate(handle):
                    last = start + record.stream_pos
                    records += 1
                    if record.record_type in (*PAGE_TYPES, WarcRecordType.revisit):
                        yield record, last
                break
            except OSError as error:
                if records != complained_at:  # once for each gap, not for each false start in it
                    yield SetAside(origin, "unreadable", f"{error} after byte {last:,}", place=last)
                complained_at = records
                start = _find(handle, magic, last + 1) if magic else -1
    if not records and complained_at < 0:
        yield SetAside(origin, "unreadable", "there is no record in it")


def _iterate(handle: Any) -> ArchiveIterator:
    # quirks_mode: resynchronise at the next record of a plain file, and accept bare line feeds
    return ArchiveIterator(handle, WarcRecordType.any_type, parse_http=False, quirks_mode=True)


def _find(handle: Any, magic: bytes, start: int) -> int:
    """The first place from `start` on with these bytes, or -1."""
    handle.seek(start)
    tail = b""
    while block := handle.read(BLOCK):
        at = (tail + block).find(magic)
        if at >= 0:
            return start - len(tail) + at
        start += len(block)
        tail = block[-(len(magic) - 1) :]
    return -1


def _read_record(record: WarcRecord, url: str, max_bytes: int) -> tuple[bytes, str | None] | str:
    """HTML and its declared charset, or why there is none."""
    if not is_web_address(url):
        return f"bad-uri: {url[:200]}"
    size = record.content_length
    if size > 2 * max_bytes:  # headers and the marks between chunks are in it
        return f"oversize: {size:,} bytes"
    block = record.reader.read()
    if len(block) < size:
        return f"truncated: {len(block):,} of {size:,} bytes"
    if cut := record.headers.get("WARC-Truncated"):
        return f"truncated: {cut}"
    if record.record_type == WarcRecordType.resource:  # no HTTP around it
        html, kind, charset = block, (record.headers.get("Content-Type") or "").partition(";")[0], None
    else:
        answer = _parse_http(block, max_bytes)
        if isinstance(answer, str):
            return answer
        html, kind, charset = answer
    if kind.strip().lower() not in HTML_TYPES and (kind or not _is_html(html)):
        return f"not-html: {kind or 'no type'}"
    if len(html) > max_bytes:
        return f"oversize: more than {max_bytes:,} bytes"
    return html, charset


def _parse_http(block: bytes, max_bytes: int) -> tuple[bytes, str, str | None] | str:
    """Body, type and charset of an answer, or why there is none.

    Many archives hold the decoded body under the headers of the coded one, so a body that does not decode is taken
    as it is when it looks like HTML.
    """
    failure = ""
    for decode in ("all", "content", "none"):
        answer = WarcRecord()  # apart from the archive's stream, which a failure would break off
        answer.init_headers(record_type=WarcRecordType.response)
        answer.set_bytes_content(block)
        answer.is_http = True
        try:
            answer.parse_http(auto_decode=decode, quirks_mode=True)
            status = None if answer.http_headers is None else answer.http_headers.status_code
            if status != 200:
                return f"http-status: {status}" if status else "bad-http: no status line"
            body = answer.reader.read(max_bytes + 1)
        except OSError as error:
            failure = failure or f"bad-http: {error}"
            continue
        if not failure or _is_html(body):
            return body, answer.http_content_type or "", answer.http_charset
    return failure


def _is_html(body: bytes) -> bool:
    """Whether it starts like a page, in the way of browsers."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and bool(HTML_START.search(body[:1000]))


def is_web_address(url: str) -> bool:
    """Whether this is an address on the web."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not set(url) & set(" \t\r\n")
    except ValueError:
        return False


def _iso(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _address(origin: str) -> str:
    return "file:" + quote(origin)


def _folder(origin: str) -> str | None:
    """The part that a folder on the way to a file names."""
    return next((folder for folder in Path(origin).parts[:-1] if folder in PARTS), None)
