"""The page to look at what became of pages."""

import html
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from puna.corpus.account import SAMPLES, Samples, original, presentable
from puna.corpus.document import DOCUMENTS, Document
from puna.corpus.source import File
from puna.recipe import Corpus

from .conftest import http, page, prose, record
from .test_corpus import make

EVIL = """<p onclick="steal()">kept words</p><script>steal()</script><iframe src=//evil.example></iframe>
<meta http-equiv=refresh content="0;url=//evil.example"><link rel=stylesheet href=//evil.example><!-- secret -->
<img src="data:image/png;base64,AAAA"><img src="data:image/png;base64,%s"><base href=//evil.example>""" % ("B" * 3000)


@pytest.fixture
def account(site, tmp_path: Path, log) -> str:
    pages = {f"{n}.html": page(prose(n) + " " + EVIL) for n in range(12)}
    pages |= {f"short{n}.html": page(prose(n, 1), title=f"Short & sweet {n}") for n in range(9)}
    pages |= {"more.warc": record(http(page(prose(50)))) + record(http(b"", status="404 Gone"))}
    make(site(pages), tmp_path / "out", log)
    return (tmp_path / "out" / "account.html").read_text()


def test_it_shows_pages_beside_their_texts(account: str) -> None:
    frames = [
        html.unescape(frame) for frame in re.findall(r'<iframe [^>]*srcdoc="(.*?)"></iframe>', account, re.DOTALL)
    ]
    assert len(frames) == 2 * SAMPLES, "kept and dropped"
    assert sum("Short & sweet" in frame for frame in frames) == SAMPLES
    assert account.count('<iframe sandbox="" loading="lazy"') == len(frames), "scripts and forms are off"
    assert "too-few-words <small>9 pages</small>" in account
    assert "http-status <small>1 page</small>" in account
    assert "general <small>13 documents</small>" in account
    shown = " ".join(map(html.unescape, re.findall(r"<pre>(.*?)</pre>", account, re.DOTALL)))
    assert sum(prose(n, 1) in shown for n in range(12)) >= SAMPLES


def test_it_runs_and_loads_nothing(account: str) -> None:
    outside = re.sub(r'srcdoc=".*?"></iframe>', "", account, flags=re.DOTALL)
    assert "<script" not in account
    assert "&lt;script" not in account
    assert not re.search(r"\b(?:src|href)=(?!\"#)", outside)
    assert account.count("default-src &#39;none&#39;") == account.count("<iframe")


def test_what_a_frame_would_not_show_is_taken_out() -> None:
    shown = presentable(EVIL)
    assert "kept words" in shown
    assert "evil" not in shown
    assert "secret" not in shown
    assert "base64,AAAA" in shown
    assert "BBBB" not in shown
    assert len(presentable("<p>" + "x" * 1_000_000)) < 100_000


def table(documents: list[Document]) -> pa.Table:
    return pa.table({name: [getattr(d, name) for d in documents] for name in DOCUMENTS.names}, DOCUMENTS)


def test_samples_do_not_depend_on_how_rows_come() -> None:
    rows = [
        Document(n, f"{n:016x}", str(n), step="filter" if n % 3 else "", reason="symbols" if n % 3 else "", part="math")
        for n in range(60)
    ]
    whole, pieces = Samples(), Samples()
    whole.add(table(rows))
    for start in (40, 0, 20):
        pieces.add(table(rows[start : start + 20]))
    for kind in (("filter", "symbols"), ("", "math")):
        assert len(whole.of(*kind)) == SAMPLES
        assert whole.of(*kind) == pieces.of(*kind)
    assert [row["doc"] for row in whole.of("", "math")] != list(range(0, 3 * SAMPLES, 3)), "they are drawn"
    assert whole.of("filter", "other") == []


def test_an_original_that_is_gone_is_left_out(site, tmp_path: Path) -> None:
    root = site({"a.html": page(prose(1)), "b.warc": b"", "c.jsonl": b"{}"})
    known = {("", name): File(str(root / name), name, "") for name in ("a.html", "b.warc", "c.jsonl", "gone.html")}

    def shown(origin: str, step: str = "filter") -> str:
        row: dict[str, Any] = {"source": "", "origin": origin, "place": 0, "step": step}
        return original(row, known, tmp_path, Corpus())  # pyright: ignore[reportCallIssue]

    assert prose(1) in shown("a.html")
    assert shown("a.html", "read") == ""
    assert [shown(name) for name in ("b.warc", "c.jsonl", "gone.html", "unknown.html")] == [""] * 4
