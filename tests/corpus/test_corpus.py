"""The stage as a whole: a small site with every kind of page in it, and the real archives."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from puna.corpus import corpus, output, pages, texts
from puna.corpus.corpus import source_digest
from puna.errors import PunaError
from puna.recipe import parse_recipe
from puna.run import work_folder

from .conftest import http, page, prose, record

FRENCH = (
    "Le professeur explique aux enfants pourquoi la rivière porte plus d'eau au printemps qu'en été, et que ce n'est "
    "pas la neige des montagnes qui en est la cause. Ils vont avec lui au bord de l'eau et ils regardent les bateaux "
    "qui passent sous le pont. Le soir, chacun écrit dans son cahier ce qu'il a vu, et le professeur lit les textes."
)
JAPANESE = "先生は、なぜ川の水が夏より春に多いのかを 子どもたちに 説明します。 " * 30
LONG = prose(50, 40)


def recipe(source: Path | str | dict[str, str], **knobs: Any) -> Any:
    return parse_recipe(
        {
            "name": "test",
            "corpus": {"source": source if isinstance(source, dict) else str(source), "engine": "inline"} | knobs,
        },
        "test",
    )


def make(source: Path, out: Path, log, **knobs: Any) -> dict[str, Any]:
    out.mkdir(parents=True)
    return corpus.run(recipe(source, **knobs), {}, out, log)


def documents(out: Path) -> list[dict[str, Any]]:
    files = [*sorted((out / "documents").glob("*.parquet")), out / "held_out.parquet"]
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def dropped(out: Path) -> dict[str, tuple[str, str, str]]:
    rows = pq.read_table(out / "dropped.parquet").to_pylist()
    return {row["url"]: (row["step"], row["reason"], row["detail"]) for row in rows}


@pytest.fixture
def mixed(site) -> Path:
    pages = {f"general/{n}.html": page(prose(n)) for n in range(20)}
    newer = record(http(page(prose(101))), url="https://example.org/page")
    older = record(http(page(prose(102))), url="https://example.org/page").replace(b"2024-", b"2019-")
    root = site(
        pages
        | {
            "code/loop.html": page(prose(30)),
            "math/sum.html": page(prose(31)),
            "general/fr.html": page(FRENCH),
            "multilingual/ja.html": page(JAPANESE),
            "general/short.html": page(prose(99, 1)),
            "general/empty.html": b"<html><body></body></html>",
            "general/deep.html": b"<div>" * 9000,
            "general/copy.html": page(prose(3).replace(".", "!")),
            "general/long.html": page(LONG),
            "general/nearly.html": page(LONG.rsplit(" ", 12)[0]),
            "crawl.warc": older + newer + record(http(b"", status="500 Oh")),
        }
    )
    for path in root.rglob("*.html"):
        os.utime(path, (1e9, 1e9))
    return root


def test_every_page_is_kept_or_dropped_for_its_reason(mixed: Path, tmp_path: Path, log) -> None:
    out = tmp_path / "out"
    metrics = make(mixed, out, log)
    kept = {row["url"]: row for row in documents(out)}
    gone = dropped(out)
    assert gone == {
        "https://example.org/page": ("url", "older-version", "https://example.org/page"),
        "file:multilingual/ja.html": ("language", "other-language", "ja"),
        "file:general/short.html": ("filter", "too-few-words", ""),
        "file:general/empty.html": ("extract", "no-text", ""),
        "file:general/deep.html": ("extract", "too-deep", "more than 2,000 elements in each other"),
        "file:general/copy.html": ("exact", "exact-copy", "file:general/3.html"),
        "file:general/nearly.html": ("near", "near-copy", "file:general/long.html"),
    } | {url: gone[url] for url in gone if gone[url][1] == "http-status"}
    assert kept["https://example.org/page"]["text"].endswith(prose(101))
    assert kept["https://example.org/page"]["date"] == "2024-05-06T07:08:09Z"
    parts = {url.split("/")[-1]: row["part"] for url, row in kept.items()}
    assert (parts["loop.html"], parts["sum.html"], parts["fr.html"]) == ("code", "math", "multilingual")
    assert kept["file:general/fr.html"]["language"] == "fr"
    assert kept["file:general/1.html"]["title"] == "A title"
    # the funnel adds up
    funnel = json.loads((out / "funnel.json").read_text())
    steps = funnel["steps"]
    assert [step["step"] for step in steps] == list(output.STEPS)
    assert steps[0]["in"] == len(kept) + pq.read_table(out / "dropped.parquet").num_rows
    assert steps[-1]["out"] == len(kept)
    for before, after in pairwise(steps):
        assert before["out"] == after["in"]
    held_out = sum(part["held_out_documents"] for part in funnel["parts"].values())
    assert held_out == pq.read_table(out / "held_out.parquet").num_rows >= 1
    assert sum(part["documents"] for part in funnel["parts"].values()) == len(kept) - held_out
    assert sum(
        language["characters"] + language["held_out_characters"] for language in funnel["languages"].values()
    ) == (sum(len(row["text"]) for row in kept.values()))
    assert metrics["corpus.pages"]["value"] == steps[0]["in"]
    assert json.loads((out / "source.json").read_text()) == {"source": str(mixed), "kind": "files", "files": 31}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_bytes_do_not_depend_on_the_engine(mixed: Path, tmp_path: Path, log) -> None:
    for n in range(150):
        (mixed / "general" / f"more{n}.html").write_bytes(page(prose(1000 + n)))
    make(mixed, tmp_path / "one" / "out", log)
    make(mixed, tmp_path / "two" / "out", log, engine="pool", workers=2)
    assert log.bars["reading pages"][1].done == log.bars["reading pages"][0] == 4
    assert digests(tmp_path / "one" / "out") == digests(tmp_path / "two" / "out")


def test_a_run_that_was_stopped_goes_on(mixed: Path, tmp_path: Path, log, monkeypatch) -> None:
    monkeypatch.setattr(pages, "SHARD_FILES", 8)
    first = tmp_path / "one" / "out"
    make(mixed, first, log)
    made = []

    def make_and_tell(name: str, real: Callable[..., None], shard: Any, *rest: Any) -> None:
        made.append((name, shard.number))
        real(shard, *rest)

    for module, name in ((pages, "make_pages"), (texts, "make_survey"), (texts, "make_texts")):
        monkeypatch.setattr(module, name, partial(make_and_tell, name, getattr(module, name)))
    second = tmp_path / "two" / "out"
    work_folder(second).mkdir(parents=True)
    for stage, number in (("pages", 0), ("pages", 2), ("texts", 1)):
        [folder] = work_folder(first).glob(f"{stage}/{number:06d}-*")
        shutil.copytree(folder, work_folder(second) / stage / folder.name)
    (work_folder(second) / "pages" / f".{folder.name}.host-1").mkdir()
    make(mixed, second, log)
    assert made == [
        *(("make_pages", n) for n in (1, 3, 4)),
        *(("make_survey", n) for n in range(5)),
        *(("make_texts", n) for n in (0, 2, 3, 4)),
    ]
    assert digests(first) == digests(second)


def test_a_changed_knob_redoes_what_reads_it(mixed: Path, tmp_path: Path, log) -> None:
    work = tmp_path / "work"

    def folders(stage: str) -> set[str]:
        return {path.name for path in (work / stage).iterdir()}

    make(mixed, tmp_path / "one", log, work=str(work))
    pages, texts = folders("pages"), folders("texts")
    make(mixed, tmp_path / "two", log, work=str(work), workers=7, memory_gb=1.0)
    assert (pages, texts) == (folders("pages"), folders("texts"))
    make(mixed, tmp_path / "three", log, work=str(work), minhash_threshold=0.7)
    assert pages == folders("pages")
    assert len(folders("texts")) == 2 * len(texts)
    make(mixed, tmp_path / "four", log, work=str(work), max_page_bytes=10_000)
    assert len(folders("pages")) == 2 * len(pages)
    os.utime(mixed / "crawl.warc", (1, 1))
    make(mixed, tmp_path / "five", log, work=str(work))
    assert len(folders("pages")) == 2 * len(pages) + 1, "one archive changed"


def test_several_sources_by_name(site, tmp_path: Path, log) -> None:
    rows = "".join(json.dumps({"text": prose(n), "url": f"https://example.org/{n}"}) + "\n" for n in range(20, 25))
    pages = site({f"{n}.html": page(prose(n)) for n in range(5)}, "pages")
    table = site({"math/rows.jsonl": rows.encode()}, "table")
    sources = {"web": str(pages), "books": str(table)}
    out = tmp_path / "out"
    out.mkdir()
    corpus.run(recipe(sources), {}, out, log)
    kept = {row["url"]: row for row in documents(out)}
    assert {row["source"] for row in kept.values()} == {"web", "books"}
    row = kept["https://example.org/20"]
    assert (row["text"], row["part"], row["origin"]) == (prose(20), "math", "math/rows.jsonl")
    assert source_digest(recipe(sources)) != source_digest(recipe({"web": str(pages)}))


def test_a_page_that_breaks_the_parser_is_set_aside(mixed: Path, tmp_path: Path, log, monkeypatch) -> None:
    class PanicError(BaseException):  # as pyo3 raises them
        pass

    def extract(html: bytes, *rest):
        if prose(5)[:40].encode() in html:
            raise PanicError("index out of bounds")
        return real(html, *rest)

    real = pages.extract
    monkeypatch.setattr(pages, "extract", extract)
    make(mixed, tmp_path / "out", log)
    poison = ("extract", "poison-page", "PanicError: index out of bounds")
    assert dropped(tmp_path / "out")["file:general/5.html"] == poison
    assert "1 pages broke the parser or killed their worker; they are in dropped.parquet" in log.messages


def test_a_quick_run_reads_some_pages_and_always_the_same(mixed: Path, tmp_path: Path, log) -> None:
    rows = []
    for name in ("one", "two"):
        make(mixed, tmp_path / name / "out", log, max_documents=10)
        assert json.loads((tmp_path / name / "out" / "funnel.json").read_text())["steps"][0]["in"] <= 10
        rows.append(documents(tmp_path / name / "out"))
    assert rows[0] == rows[1] != []
    make(mixed, tmp_path / "files" / "out", log, max_files=12)
    assert json.loads((tmp_path / "files" / "out" / "source.json").read_text())["files"] == 12


def test_a_source_with_nothing_to_keep_says_why(site, tmp_path: Path, log) -> None:
    root = site({"a.html": page(prose(1, 1)), "b.html": page(prose(2, 1)), "c.html": b""})
    with pytest.raises(PunaError, match=r"none of 3 pages was kept \(2 too-few-words, 1 no-text\); bring more pages"):
        make(root, tmp_path / "out", log)


def test_missing_sources_and_languages_are_refused_at_once(tmp_path: Path, log) -> None:
    with pytest.raises(PunaError, match=r"corpus.source = .*nowhere' does not exist"):
        make(tmp_path / "nowhere", tmp_path / "one", log)
    with pytest.raises(PunaError, match=r"corpus.languages: 'klingon' cannot"):
        make(tmp_path, tmp_path / "two", log, languages=["klingon"])
    with pytest.raises(PunaError, match="does not exist"):
        source_digest(recipe(tmp_path / "nowhere"))


def test_a_changed_source_has_another_digest(site) -> None:
    root = site({"a.html": page(prose(1)), "b.txt": b"not read"})
    before = source_digest(recipe(root))
    assert before == source_digest(recipe(root))
    site({"b.txt": b"still not read"})
    assert before == source_digest(recipe(root))
    os.utime(root / "a.html", (1, 1))
    assert before != source_digest(recipe(root))
    assert source_digest(recipe("demo")) == source_digest(recipe("demo"))


def test_the_held_out_share(tmp_path: Path) -> None:
    ids = [pages.url_id(f"https://example.org/{n}") for n in range(5000)]
    found = output.Survey(kept=5000, lowest=min(ids))
    assert 70 < sum(name < output.held_out_bound(found, 0.02) for name in ids) < 130
    assert sum(name < output.held_out_bound(found, 1e-9) for name in ids) == 1, "one at least"
    assert not any(name < output.held_out_bound(found, 0.0) for name in ids)
    assert output.held_out_bound(output.Survey(kept=1, lowest=max(ids)), 0.02) < max(ids)


def test_the_documentation_names_every_step() -> None:
    table = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text()
    named = [line.split()[1] for line in table.splitlines() if line.startswith("| ")]
    assert [name for name in named if name in output.STEPS] == list(output.STEPS)


def test_real_archives(shared_data, tmp_path: Path, log) -> None:
    make(shared_data("warc"), tmp_path / "out", log)
    kept = documents(tmp_path / "out")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["steps"][0]["in"] > 100
    assert {"bad-uri", "not-html", "http-status", "truncated", "bad-http"} <= funnel["steps"][0]["dropped"].keys()
    assert len({row["url"] for row in kept}) == len(kept) >= 5
    assert all(row["url"].startswith("http") and row["date"] for row in kept)
