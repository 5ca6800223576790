"""The reader: real and made-up archives and folders, and what it sets aside."""

import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.stream_io import ZstdWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.read import RawPage, SetAside, is_web_address, read, read_original
from puna.corpus.source import File, find_files
from puna.recipe import Corpus

from .conftest import http, page, prose, record

HTML = page(prose(1))
GOOD = record(http(HTML))


def items(path: Path, max_bytes: int = 100_000) -> list[RawPage | SetAside]:
    return list(read(File(str(path), path.name, ""), path.parent, knobs(max_bytes)))


def knobs(max_bytes: int = 100_000) -> Corpus:
    return Corpus(max_page_bytes=max_bytes)  # pyright: ignore[reportCallIssue]


def outcome(content: bytes, tmp_path: Path, name: str = "a.warc") -> list[str]:
    """`page` or the reason, for each record of an archive."""
    path = tmp_path / name
    path.write_bytes(content)
    return ["page" if isinstance(item, RawPage) else item.reason for item in items(path)]


def chunked(body: bytes) -> bytes:
    return f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


CHUNKED = "Content-Type: text/html\nTransfer-Encoding: chunked"
GZIPPED = "Content-Type: text/html\nContent-Encoding: gzip"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(http(chunked(HTML), CHUNKED)), "page"),
        (record(http(HTML, CHUNKED)), "page"),  # decoded already, as many archives have it
        (record(http(gzip.compress(HTML), GZIPPED)), "page"),
        (record(http(HTML, GZIPPED)), "page"),
        (record(http(HTML, "")), "page"),  # no type, but it looks like HTML
        (record(HTML, kind="resource", content_type="text/html"), "page"),
        (record(http(HTML), url="<https://example.org/a>"), "page"),
        (record(http(b"zz\r\n" + HTML, CHUNKED)), "bad-http"),
        (record(http(b"\x1f\x8b\x08 broken", GZIPPED)), "bad-http"),
        (record(b"not HTTP at all"), "bad-http"),
        (record(b""), "bad-http"),
        (record(http(b"", status="404 Not Found")), "http-status"),
        (record(http(b"GIF89a", "Content-Type: image/gif")), "not-html"),
        (record(http(b"plain words", "")), "not-html"),
        (record(http(HTML), url="metadata://gnu.org/log"), "bad-uri"),
        (record(http(HTML), url="https://exa mple.org/"), "bad-uri"),
        (record(http(HTML), url=""), "bad-uri"),
        (record(http(HTML), more="WARC-Truncated: length\r\n"), "truncated"),
        (record(http(b"<p>" + b"x" * 150_000)), "oversize"),
        (record(http(b"<p>" + b"x" * 250_000)), "oversize"),
        (record(http(gzip.compress(b"<p>" + b"x" * 150_000), GZIPPED)), "oversize"),
    ],
)
def test_one_bad_record_does_not_hide_the_next(bad: bytes, reason: str, tmp_path: Path) -> None:
    assert outcome(bad + GOOD, tmp_path) == [reason, "page"]
    assert outcome(gzip.compress(bad) + gzip.compress(GOOD), tmp_path, "a.warc.gz") == [reason, "page"]


def test_a_page_comes_as_it_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    path.write_bytes(gzip.compress(GOOD))
    [found] = items(path)
    assert found == RawPage("https://example.org/a", HTML, "utf-8", "2024-05-06T07:08:09Z", None, "a.warc.gz")


def test_other_kinds_of_records_are_passed_over(tmp_path: Path) -> None:
    others = [record(b"GET / HTTP/1.1\r\n\r\n", kind=kind) for kind in ("request", "metadata", "warcinfo")]
    assert outcome(b"".join(others) + GOOD, tmp_path) == ["page"]


def test_a_page_that_the_crawler_knew_is_counted(tmp_path: Path) -> None:
    assert outcome(record(http(b""), kind="revisit") + GOOD, tmp_path) == ["revisit", "page"]


def test_zstandard(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with ZstdWriter(buffer) as writer:
        writer.write(GOOD)
    assert outcome(buffer.getvalue() * 2, tmp_path, "a.warc.zst") == ["page", "page"]


def test_an_archive_that_breaks_off(tmp_path: Path) -> None:
    assert outcome(GOOD + GOOD[:-200], tmp_path) == ["page", "truncated"]
    member = gzip.compress(GOOD)
    assert outcome(member + member[: len(member) // 2], tmp_path, "a.warc.gz")[0] == "page"
    assert outcome(member + member[: len(member) // 2], tmp_path, "a.warc.gz")[1:] in (["truncated"], ["unreadable"])


def test_reading_goes_on_after_a_broken_member(tmp_path: Path) -> None:
    member = gzip.compress(GOOD)
    broken = bytearray(member)
    broken[60:80] = bytes(20)
    assert outcome(member + bytes(broken) + member * 2, tmp_path, "a.warc.gz") == [
        "page",
        "unreadable",
        "page",
        "page",
    ]
    assert outcome(b"what is this\r\n\r\n" + GOOD, tmp_path) == ["page"]


def test_what_is_no_archive(tmp_path: Path) -> None:
    assert outcome(b"", tmp_path) == ["unreadable"]
    assert outcome(b"hello", tmp_path, "a.warc.gz") == ["unreadable"]


def test_a_folder_of_pages(site) -> None:
    root = site(
        {
            "b.html": HTML,
            "a/math/x.htm.gz": gzip.compress(HTML),
            "code/deep/y.xhtml": HTML,
            "code/cut.html.gz": gzip.compress(HTML)[:-20],
            "code/big.html": b"x" * 100_001,
            "notes.txt": b"not a page",
        }
    )
    files = find_files(str(root))
    names = ["a/math/x.htm.gz", "b.html", "code/big.html", "code/cut.html.gz", "code/deep/y.xhtml"]
    assert [file.name for file in files] == names
    found = [item for file in files for item in read(file, root, knobs())]
    assert [getattr(item, "reason", None) for item in found] == [None, None, "oversize", "truncated", None]
    first, second, *_, last = found
    assert isinstance(first, RawPage)
    assert isinstance(second, RawPage)
    assert isinstance(last, RawPage)
    assert (first.url, first.part, first.html) == ("file:a/math/x.htm", "math", HTML)
    assert (second.part, last.part, last.url) == (None, "code", "file:code/deep/y.xhtml")
    assert (first.date or "").endswith("Z")


# -- rows --------------------------------------------------------------------------------------------------------------

ROWS = [
    {"text": "One text.", "url": "https://example.org/1", "title": "One", "date": "2024-01-02"},
    {"html": "<p>Ein Café", "url": "https://example.org/2"},
    {"text": "No address."},
    {"url": "https://example.org/4"},
    {"text": "x" * 100_001},
]
COMPRESS = {
    ".jsonl": bytes,
    ".jsonl.gz": gzip.compress,
    ".jsonl.xz": lzma.compress,
    ".jsonl.zst": lambda data: zstd(data),
}


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def check_rows(found: list[RawPage | SetAside], origin: str) -> None:
    first, second, third, *bad = found
    assert first == RawPage("https://example.org/1", "One text.", None, "2024-01-02", None, origin, 0, "One")
    assert second == RawPage("https://example.org/2", "<p>Ein Café".encode(), "utf-8", None, None, origin, 1)
    assert (third.url, third.place) == (f"file:{origin}?row=2", 2)
    assert [(item.reason, item.place) for item in bad if isinstance(item, SetAside)] == [
        ("bad-row", 3),
        ("oversize", 4),
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_lines_of_json(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(COMPRESS[suffix]("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    check_rows(items(path), path.name)


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist(
        ROWS, pa.schema([(name, pa.string()) for name in ("text", "html", "url", "title", "date")])
    )
    pq.write_table(table.append_column("other", pa.array(range(5))), path)
    check_rows(items(path), path.name)


def test_broken_rows_do_not_hide_the_next(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0]).encode()
    lines = [
        good,
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"",
        b'{"text": 3}',
        b"[" * 100_000,
        b'{"text": "' + b"x" * 300_000 + b'"}',
        good,
    ]
    reasons = ["page", *["bad-row"] * 6, "oversize", "page"]
    assert outcome(b"\n".join(lines), tmp_path, "a.jsonl") == reasons
    packed = gzip.compress(b"\n".join(lines * 20))
    assert outcome(packed[: len(packed) // 2], tmp_path, "a.jsonl.gz")[-1] == "truncated"
    assert outcome(b"no table", tmp_path, "a.parquet") == ["unreadable"]


def test_a_page_can_be_read_again(tmp_path: Path) -> None:
    pages = [record(http(page(prose(n))), url=f"https://example.org/{n}") for n in range(5)]
    pages[1] = record(http(b"", status="404 Gone"))
    contents = {
        "a.warc": b"".join(pages),
        "a.warc.gz": b"".join(map(gzip.compress, pages)),
        "a.jsonl": b"".join(json.dumps({"text": prose(n)}).encode() + b"\n" for n in range(5)),
        "a.html": HTML,
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        file = File(str(path), name, "")
        for item in items(path):
            again = read_original(file, item.place, tmp_path, knobs())
            assert again == (item if isinstance(item, RawPage) else None)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([".warc", ".warc.gz", ".html.gz", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]),
)
def test_no_bytes_raise(tmp_path_factory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("random") / f"a{suffix}"
    for data in (content, GOOD[:300] + content, gzip.compress(GOOD)[:200] + content):
        path.write_bytes(data)
        items(path)


@given(st.text(max_size=60))
def test_no_address_raises(url: str) -> None:
    is_web_address(url)
    is_web_address("http://" + url)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("commoncrawl__whirlwind-python__whirlwind.warc.gz", {"page": 1}),
        ("commoncrawl__whirlwind-python__whirlwind.warc", {"page": 1}),
        ("chatnoir-eu__chatnoir-resiliparse__warcfile.warc.gz", {"page": 16}),
        ("chatnoir-eu__chatnoir-resiliparse__clipped.warc.gz", {"truncated": 1}),
        ("chatnoir-eu__chatnoir-resiliparse__clueweb-quirk.warc.gz", {"page": 29}),
        ("webrecorder__warcio__example-bad-non-chunked.warc.gz", {"page": 1, "revisit": 1}),
        ("webrecorder__warcio__example-wget-bad-target-uri.warc.gz", {"page": 1, "bad-uri": 2}),
        ("webrecorder__warcio__example-iana.org-chunked.warc", {"page": 1}),
        (
            "webrecorder__pywb__iana.warc.gz",
            {"page": 16, "bad-http": 9, "not-html": 19, "http-status": 4, "revisit": 123},
        ),
    ],
)
def test_real_archives(name: str, expected: dict[str, int], shared_data) -> None:
    path = shared_data("warc") / name
    found = Counter("page" if isinstance(item, RawPage) else item.reason for item in items(path, 2_000_000))
    assert found == expected
