"""The stage as a whole: a small site with every kind of page in it, and the real archives."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from puna.corpus import corpus, judge
from puna.corpus.corpus import choose_held_out, source_digest
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


def recipe(source: Path | str, **knobs: Any) -> Any:
    return parse_recipe({"name": "test", "corpus": {"source": str(source), "workers": 1} | knobs}, "test")


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
            "general/short.html": page("Hello."),
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
    assert [step["step"] for step in steps] == list(corpus.STEPS)
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


def test_the_bytes_do_not_depend_on_the_number_of_workers(mixed: Path, tmp_path: Path, log, monkeypatch) -> None:
    monkeypatch.setattr(judge, "SHARD_FILES", 8)
    make(mixed, tmp_path / "one" / "out", log)
    make(mixed, tmp_path / "two" / "out", log, workers=2)
    assert log.bars["reading pages"][1].done == log.bars["reading pages"][0] == 5
    assert digests(tmp_path / "one" / "out") == digests(tmp_path / "two" / "out")


def test_finished_shards_are_not_done_again(mixed: Path, tmp_path: Path, log, monkeypatch) -> None:
    monkeypatch.setattr(judge, "SHARD_FILES", 8)
    first = tmp_path / "one" / "out"
    make(mixed, first, log)
    second = tmp_path / "two" / "out"
    work_folder(second).mkdir(parents=True)
    for name in ("000000.arrow", "000002.arrow"):
        os.link(work_folder(first) / name, work_folder(second) / name)
    done = []
    monkeypatch.setattr(
        corpus, "process_shard", lambda shard: (done.append(shard.target.name), judge.process_shard(shard))
    )
    make(mixed, second, log)
    assert done == ["000001.arrow", "000003.arrow", "000004.arrow"]
    assert digests(first) == digests(second)


def test_a_page_that_breaks_the_parser_is_set_aside(mixed: Path, tmp_path: Path, log, monkeypatch) -> None:
    class PanicError(BaseException):  # as pyo3 raises them
        pass

    def extract(html: str):
        if prose(5)[:40] in html:
            raise PanicError("index out of bounds")
        return real(html)

    real = judge.extract
    monkeypatch.setattr(judge, "extract", extract)
    make(mixed, tmp_path / "out", log)
    poison = ("extract", "poison-page", "PanicError: index out of bounds")
    assert dropped(tmp_path / "out")["file:general/5.html"] == poison
    assert "1 pages broke the parser; the first: PanicError: index out of bounds" in log.messages


def test_a_quick_run_reads_some_pages_and_always_the_same(mixed: Path, tmp_path: Path, log) -> None:
    rows = []
    for name in ("one", "two"):
        make(mixed, tmp_path / name / "out", log, max_documents=10)
        assert json.loads((tmp_path / name / "out" / "funnel.json").read_text())["steps"][0]["in"] <= 10
        rows.append(documents(tmp_path / name / "out"))
    assert rows[0] == rows[1] != []


def test_a_source_with_nothing_to_keep_says_why(site, tmp_path: Path, log) -> None:
    root = site({"a.html": page("Hello."), "b.html": page("Bye."), "c.html": b""})
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


def test_the_held_out_share() -> None:
    urls = [f"https://example.org/{n}" for n in range(5000)]
    chosen = choose_held_out(urls, 0.02)
    assert 70 < chosen.sum() < 130
    assert list(chosen[::-1]) == list(choose_held_out(urls[::-1], 0.02)), "a page's fate is its own"
    assert choose_held_out(urls[:5], 1e-9).sum() == 1
    assert choose_held_out(urls[:1], 0.02).sum() == 0
    assert choose_held_out(urls, 0.0).sum() == 0


def test_workers_do_not_load_torch() -> None:
    program = (
        "import sys, puna.corpus.judge; assert not {'torch', 'transformers', 'pyarrow.parquet'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from puna.corpus.judge import die_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), die_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, _ = psutil.wait_procs([worker], timeout=10)
    assert gone == [worker]


def test_real_archives(shared_data, tmp_path: Path, log) -> None:
    make(shared_data("warc"), tmp_path / "out", log)
    kept = documents(tmp_path / "out")
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["steps"][0]["in"] > 100
    assert {"bad-uri", "not-html", "http-status", "truncated", "bad-http"} <= funnel["steps"][0]["dropped"].keys()
    assert len({row["url"] for row in kept}) == len(kept) >= 5
    assert all(row["url"].startswith("http") and row["date"] for row in kept)
