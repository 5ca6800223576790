"""The reader: real and made-up archives and folders, and what it sets aside."""

import gzip
import io
from collections import Counter
from pathlib import Path

import pytest
from fastwarc.stream_io import ZstdWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.read import RawPage, SetAside, find_files, is_web_address, read
from puna.errors import PunaError

from .conftest import http, page, prose, record

HTML = page(prose(1))
GOOD = record(http(HTML))


def items(path: Path, max_bytes: int = 100_000) -> list[RawPage | SetAside]:
    return list(read(path, path.parent, max_bytes))


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
    others = [record(b"GET / HTTP/1.1\r\n\r\n", kind=kind) for kind in ("request", "revisit", "metadata", "warcinfo")]
    assert outcome(b"".join(others) + GOOD, tmp_path) == ["page"]


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
    warcs, pages = find_files(root)
    assert warcs == []
    names = ["a/math/x.htm.gz", "b.html", "code/big.html", "code/cut.html.gz", "code/deep/y.xhtml"]
    assert [path.relative_to(root).as_posix() for path in pages] == names
    found = [item for path in pages for item in read(path, root, 100_000)]
    assert [getattr(item, "reason", None) for item in found] == [None, None, "oversize", "truncated", None]
    first, second, *_, last = found
    assert isinstance(first, RawPage)
    assert isinstance(second, RawPage)
    assert isinstance(last, RawPage)
    assert (first.url, first.part, first.html) == ("file:a/math/x.htm", "math", HTML)
    assert (second.part, last.part, last.url) == (None, "code", "file:code/deep/y.xhtml")
    assert (first.date or "").endswith("Z")


def test_a_single_file_is_a_source(site) -> None:
    path = site({"one.html": HTML}) / "one.html"
    assert find_files(path) == ([], [path])
    [found] = read(path, path, 100_000)
    assert isinstance(found, RawPage)
    assert found.origin == "one.html"


def test_missing_and_empty_sources_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match=r"corpus.source = .*nowhere.* does not exist; name a folder"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(PunaError, match=r"holds no file that ends in \.warc"):
        find_files(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([".warc", ".warc.gz", ".warc.zst", ".html", ".html.gz"]))
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
        ("webrecorder__warcio__example-bad-non-chunked.warc.gz", {"page": 1}),
        ("webrecorder__warcio__example-wget-bad-target-uri.warc.gz", {"page": 1, "bad-uri": 2}),
        ("webrecorder__warcio__example-iana.org-chunked.warc", {"page": 1}),
        (
            "webrecorder__pywb__iana.warc.gz",
            {"page": 16, "bad-http": 9, "not-html": 19, "http-status": 4},
        ),
    ],
)
def test_real_archives(name: str, expected: dict[str, int], shared_data) -> None:
    path = shared_data("warc") / name
    found = Counter("page" if isinstance(item, RawPage) else item.reason for item in items(path, 2_000_000))
    assert found == expected
