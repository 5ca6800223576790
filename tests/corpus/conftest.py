"""What the corpus tests share: pages of made-up prose, archives of made-up records, and a log that only remembers."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOUNS = ["river", "mountain", "teacher", "library", "engine", "garden", "window", "letter", "captain", "market"]
VERBS = ["follows", "describes", "carries", "measures", "paints", "repairs", "visits", "remembers", "protects"]
ENDS = ["in the morning", "with great care", "for a long time", "on the other side of it", "as if it were new"]


def prose(seed: int, sentences: int = 12) -> str:
    """English of a sort, a different text for each seed."""
    pick = random.Random(seed)
    lines = [
        f"The {pick.choice(NOUNS)} of the {pick.choice(NOUNS)} {pick.choice(VERBS)} a {pick.choice(NOUNS)} that is "
        f"{pick.randrange(1000)} miles from the {pick.choice(NOUNS)} {pick.choice(ENDS)}."
        for _ in range(sentences)
    ]
    return " ".join(lines)


def page(text: str, title: str = "A title", head: str = "") -> bytes:
    """A page with a menu around the text."""
    body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n\n"))
    menu = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/about'>About</a></li></ul></nav>"
    return (
        f"<!doctype html><html><head><title>{title}</title>{head}</head><body>{menu}"
        f"<main><h1>{title}</h1>{body}</main><footer>All rights reserved</footer></body></html>"
    ).encode()


def http(body: bytes, headers: str = "Content-Type: text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    """An answer as it comes over the wire."""
    lines = "".join(f"{line}\r\n" for line in headers.split("\n") if line)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def record(
    block: bytes,
    url: str = "https://example.org/a",
    kind: str = "response",
    length: int | None = None,
    more: str = "",
    content_type: str = "application/http; msgtype=response",
) -> bytes:
    """One WARC record; `length` states another size than the block has."""
    return (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"WARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\nContent-Type: {content_type}\r\n{more}"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    ).encode() + block + b"\r\n\r\n"  # fmt: skip


class QuietBar:
    def __init__(self) -> None:
        self.done = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n


class QuietLog:
    """Stands in for puna.log.Log."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.bars: dict[str, tuple[int, QuietBar]] = {}

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[QuietBar]:
        self.bars[description] = total, QuietBar()
        yield self.bars[description][1]


@pytest.fixture
def log() -> Any:
    return QuietLog()


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of pages from a mapping of names to bytes."""

    def make(pages: dict[str, bytes], name: str = "site") -> Path:
        for path, content in pages.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return tmp_path / name

    return make
