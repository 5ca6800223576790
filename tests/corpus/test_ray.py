"""The same work as Ray tasks."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from puna.corpus import corpus
from puna.corpus.engine import Job, open_engine, run_jobs
from puna.errors import PunaError
from puna.recipe import Corpus

from .conftest import page, prose
from .deadly import count, fail, write_rows
from .test_corpus import digests, make
from .test_engine import rows_of


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    pytest.importorskip("ray")
    with open_engine(Corpus(engine="ray", workers=2)) as engine:  # pyright: ignore[reportCallIssue]
        yield engine


def test_a_deadly_row_is_found_and_set_aside(engine, tmp_path: Path, log) -> None:
    jobs = [Job(write_rows, count, {n: "exit"} if n == 1 else {}, tmp_path / str(n)) for n in range(3)]
    run_jobs(engine, jobs, log, "working")
    assert [line for job in jobs for line in rows_of(job) if "set aside" in line] == ["1 set aside"]


def test_an_error_is_raised_here(engine, tmp_path: Path, log) -> None:
    with pytest.raises(PunaError, match="the disk is full"):
        run_jobs(engine, [Job(fail, count, None, tmp_path / "ill")], log, "working")


def test_the_bytes_are_those_of_one_process(engine, site, tmp_path: Path, log, monkeypatch) -> None:
    root = site({f"{n}.html": page(prose(n % 90)) for n in range(100)})
    make(root, tmp_path / "one", log)
    monkeypatch.setattr(corpus, "open_engine", lambda knobs: nullcontext(engine))
    make(root, tmp_path / "two", log)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
