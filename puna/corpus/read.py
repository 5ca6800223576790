"""Read raw pages from WARC files and from folders of HTML files; what cannot be read is set aside with a reason.

unreadable      a file that cannot be opened, or bytes in an archive that are no record
truncated       a record or a gzip file that ends too early, or that the crawler cut
bad-uri         a record without an http(s) address
bad-http        a payload without HTTP headers, or whose chunks or compression are broken
http-status     an answer other than 200 OK
not-html        an image, a script, a feed ...
oversize        more bytes than a page may have
"""

import gzip
import mmap
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from puna.errors import PunaError

PARTS = ("general", "math", "code", "multilingual")
HTML_SUFFIXES = (".html", ".htm", ".xhtml", ".html.gz", ".htm.gz", ".xhtml.gz")
WARC_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
HTML_TYPES = ("text/html", "application/xhtml+xml")
HTML_START = re.compile(rb"<(!doctype html|html|head|title|meta|body|div|table|h1|p)\b", re.IGNORECASE)
MEMBER_MAGIC = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class RawPage:
    """A page as it came over the wire."""

    url: str
    html: bytes
    charset: str | None
    """What the HTTP header says, if anything."""
    date: str | None
    """When it was fetched, or its file was last changed: ISO 8601, UTC."""
    part: str | None
    """The part of the corpus that its folder names."""
    origin: str
    """The file it was read from, relative to the source."""


@dataclass(frozen=True)
class SetAside:
    """Something that cannot be used."""

    origin: str
    reason: str
    detail: str = ""
    url: str = ""


def find_files(source: Path) -> tuple[list[Path], list[Path]]:
    """The WARC files and the HTML files of a source, each in the order of their names."""
    if not source.exists():
        raise PunaError(
            f"corpus.source = {str(source)!r} does not exist; name a folder of WARC or HTML files, or use 'demo'"
        )
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    warcs = [path for path in files if path.name.lower().endswith(WARC_SUFFIXES)]
    pages = [path for path in files if path.name.lower().endswith(HTML_SUFFIXES)]
    if not warcs and not pages:
        known = ", ".join(WARC_SUFFIXES + HTML_SUFFIXES)
        raise PunaError(f"corpus.source = {str(source)!r} holds no file that ends in {known}")
    return warcs, pages


def read(path: Path, source: Path, max_bytes: int) -> Iterator[RawPage | SetAside]:
    """The pages of one file; `source` is the folder that its name is relative to. Raises nothing."""
    origin = path.name if path == source else path.relative_to(source).as_posix()
    try:
        if path.name.lower().endswith(WARC_SUFFIXES):
            yield from _read_warc(path, origin, max_bytes)
        else:
            yield _read_file(path, origin, max_bytes)
    except OSError as error:
        yield SetAside(origin, "unreadable", str(error))


def _read_file(path: Path, origin: str, max_bytes: int) -> RawPage | SetAside:
    url = "file:" + quote(origin.removesuffix(".gz"))
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as handle:
            html = handle.read(max_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return SetAside(origin, "truncated", str(error), url)
    if len(html) > max_bytes:
        return SetAside(origin, "oversize", f"more than {max_bytes:,} bytes", url)
    part = next((folder for folder in Path(origin).parts[:-1] if folder in PARTS), None)
    return RawPage(url, html, None, _iso(datetime.fromtimestamp(path.stat().st_mtime, UTC)), part, origin)


def _read_warc(path: Path, origin: str, max_bytes: int) -> Iterator[RawPage | SetAside]:
    for record in _records(path, origin):
        if isinstance(record, SetAside):
            yield record
            continue
        url = (record.headers.get("WARC-Target-URI") or "").strip().strip("<>")  # wget wrote <...>
        page = _read_record(record, url, max_bytes)
        if isinstance(page, str):
            reason, _, detail = page.partition(": ")
            yield SetAside(origin, reason, detail, url)
        else:
            html, charset = page
            date = _iso(record.record_date) if record.record_date else None
            yield RawPage(url, html, charset, date, None, origin)


def _records(path: Path, origin: str) -> Iterator[WarcRecord | SetAside]:
    """Response and resource records. After broken bytes, reading goes on at the next compressed member."""
    if path.stat().st_size == 0:
        yield SetAside(origin, "unreadable", "the file is empty")
        return
    magic = MEMBER_MAGIC.get(path.suffix.lower())
    records = 0
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start, complained_at = 0, -1
        while start >= 0:
            handle.seek(start)
            last = start
            try:
                # quirks_mode: resynchronise at the next record of a plain file, and accept bare line feeds
                for record in ArchiveIterator(handle, WarcRecordType.any_type, parse_http=False, quirks_mode=True):
                    last = start + record.stream_pos
                    records += 1
                    if record.record_type in (WarcRecordType.response, WarcRecordType.resource):
                        yield record
                break
            except OSError as error:
                if records != complained_at:  # once for each gap, not for each false start in it
                    yield SetAside(origin, "unreadable", f"{error} after byte {last:,}")
                complained_at = records
                start = data.find(magic, last + 1) if magic else -1
    if not records and complained_at < 0:
        yield SetAside(origin, "unreadable", "there is no record in it")


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
