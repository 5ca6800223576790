"""Shards are made whatever their workers die of, once each, and only the deadly rows are left out."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from puna.corpus.engine import Job, open_engine, run_jobs
from puna.errors import PunaError
from puna.recipe import Corpus

from .deadly import COUNT, DEATHS, count, count_deadly, die_of_all, die_once, fail, write_rows


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    knobs = Corpus(workers=2, worker_memory_gb=1.0)  # pyright: ignore[reportCallIssue]
    with open_engine(knobs) as engine:
        yield engine


def rows_of(job: Job) -> list[str]:
    return (job.target / "rows.txt").read_text().splitlines()


@pytest.mark.parametrize("death", DEATHS)
def test_a_deadly_row_is_found_and_set_aside(death: str, engine, tmp_path: Path, log) -> None:
    well = Job(write_rows, count, {}, tmp_path / "well")
    ill = Job(write_rows, count, {4: death}, tmp_path / "ill")
    run_jobs(engine, [ill, well], log, "working")
    assert rows_of(well) == [str(row) for row in range(COUNT)]
    assert rows_of(ill) == [f"{row} set aside" if row == 4 else str(row) for row in range(COUNT)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ill", "well"], "nothing is left beside them"
    assert log.bars["working"][1].done == 2


def test_many_deadly_rows(engine, tmp_path: Path, log) -> None:
    job = Job(write_rows, count, dict.fromkeys((0, 3, 5), "exit"), tmp_path / "shard")
    run_jobs(engine, [job], log, "working")
    assert [row for row, line in enumerate(rows_of(job)) if "set aside" in line] == [0, 3, 5]


def test_a_death_by_accident_costs_no_row(engine, tmp_path: Path, log) -> None:
    job = Job(die_once, count, tmp_path, tmp_path / "shard")
    run_jobs(engine, [job], log, "working")
    assert rows_of(job) == [str(row) for row in range(COUNT)]
    assert log.messages == []


def test_what_no_row_is_to_blame_for_stops_the_run(engine, tmp_path: Path, log) -> None:
    with pytest.raises(PunaError, match="no single page of it is to blame; give it more memory"):
        run_jobs(engine, [Job(die_of_all, count, None, tmp_path / "shard")], log, "working")
    with pytest.raises(PunaError, match="kills the worker; move that away"):
        run_jobs(engine, [Job(die_of_all, count_deadly, None, tmp_path / "shard")], log, "working")


def test_an_error_is_raised_here_and_finished_work_stays(engine, tmp_path: Path, log) -> None:
    well, ill = Job(write_rows, count, {}, tmp_path / "well"), Job(fail, count, None, tmp_path / "ill")
    with pytest.raises(PunaError, match="the disk is full") as error:
        run_jobs(engine, [well, *[ill] * 5], log, "working")
    assert "in fail\n" in error.value.__notes__[0], "where it happened"
    run_jobs(engine, [well], log, "again")
    assert well.target.exists()


def test_what_is_there_is_not_made_again(engine, tmp_path: Path, log) -> None:
    (tmp_path / "shard").mkdir()
    run_jobs(engine, [Job(fail, count, None, tmp_path / "shard")], log, "working")
    assert not list((tmp_path / "shard").iterdir())


POOL = """
import os, sys, time
from puna.corpus.engine import open_engine
from puna.recipe import Corpus

if __name__ == "__main__":
    with open_engine(Corpus(workers=1)) as engine:
        print(dict(engine.outcomes([(os.getpid, ())]))[0], flush=True)
        list(engine.outcomes([(time.sleep, (60,))]))
"""


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        worker = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.2)  # it sleeps now
        parent.kill()
    gone, _ = psutil.wait_procs([worker], timeout=10)
    assert gone == [worker]


def test_workers_do_not_load_torch() -> None:
    program = (
        "import sys, puna.corpus.pages, puna.corpus.texts; assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
