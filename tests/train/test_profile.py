"""Profiles of a running training: by the knob, and by a file that asks for one."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from puna.log import Log
from puna.train.launch import World
from puna.train.loop import train
from puna.train.losses import NextToken
from puna.train.profile import ASK


def traced(folder: Path, name: str) -> int:
    """How many optimizer steps a trace holds."""
    events = json.loads(gzip.decompress((folder / "profile" / f"{name}.json.gz").read_bytes()))["traceEvents"]
    assert "aten::mm" in (folder / "profile" / f"{name}.txt").read_text()
    return sum(event["name"].startswith("Optimizer.step#AdamW") for event in events)


def test_the_knob_and_a_file_ask_for_profiles(
    make_model: Callable[[], Any], make_options: Callable[..., Any], random_rows: Callable[..., Any], tmp_path: Path
):
    log = Log(tmp_path / "log", "test")

    def ask(step: int, module: Any) -> None:
        if step == 3:
            (log.folder / ASK).touch()

    options = make_options(profile_steps=[1, 2])
    train(make_model(), random_rows(32), NextToken(), options, World(), tmp_path / "work", log, "test", ask)
    assert not (log.folder / ASK).exists()
    # asked for after step 3, seen in step 4
    assert sorted(path.name for path in (log.folder / "profile").glob("*.gz")) == [
        "test-steps-1-2-rank-0.json.gz",
        "test-steps-5-7-rank-0.json.gz",
    ]
    assert traced(log.folder, "test-steps-1-2-rank-0") == 2
    assert traced(log.folder, "test-steps-5-7-rank-0") == 3


def test_a_range_beyond_the_last_step_ends_there(
    make_model: Callable[[], Any], make_options: Callable[..., Any], random_rows: Callable[..., Any], tmp_path: Path
):
    log = Log(tmp_path / "log", "test")
    options = make_options(profile_steps=[4, 9])
    train(make_model(), random_rows(20), NextToken(), options, World(), tmp_path / "work", log, "test")
    assert traced(log.folder, "test-steps-4-9-rank-0") == 2
