"""Where the time of a training went: every second has one cause, over restarts, too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.log import Log
from puna.train import clock as clock_module
from puna.train.clock import CAUSES, Clock, clock_file
from puna.train.launch import World
from puna.train.loop import train
from puna.train.losses import NextToken


class Time:
    """Stands for the module time."""

    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock_module, "time", time)
    return time


def test_every_second_has_a_cause_over_restarts(time: Time, tmp_path: Path):
    path, mark = tmp_path / "test.clock.json", tmp_path / "work" / "begun"
    clock = Clock(path, mark)
    spent = [("starting", 5.0), ("useful", 20.0), ("data", 1.0), ("useful", 10.0)]
    for cause, seconds in spent:
        time.now += seconds
        clock.spend(cause)
    time.now += 0.5
    clock.save(2)
    time.now += 8.0
    clock.spend("useful")
    time.now += 1.0
    clock.spend("skipped")
    time.now += 100.0  # killed, and started again

    again = Clock(path, mark)
    again.back_to(2)
    time.now += 3.0
    again.spend("starting")
    expected = {"useful": 30.0, "data": 1.0, "checkpoints": 0.5, "repeated": 8.0, "skipped": 0.0, "starting": 8.0}
    assert again.seconds == pytest.approx(expected | {"stopped": 101.0})  # the last second was not yet written down
    assert sum(again.seconds.values()) == pytest.approx(time.now - 1000)
    assert again.effective == pytest.approx(30 / (time.now - 1000))
    again.back_to(1)  # a checkpoint that it knows nothing of
    assert again.seconds["useful"] == 0
    assert again.seconds["repeated"] == 38

    mark.unlink()  # other knobs, another training
    assert sum(Clock(path, mark).seconds.values()) == 0


def test_a_training_tells_its_account(
    make_model: Callable[[], Any], make_options: Callable[..., Any], random_rows: Callable[..., Any], tmp_path: Path
):
    log = Log(tmp_path / "log", "test")
    for _ in range(2):  # the second time nothing is left to do
        options = make_options(checkpoint_seconds=1e-9)
        train(make_model(), random_rows(32), NextToken(), options, World(), tmp_path / "work", log, "test")
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines[0]["effective"] == 0  # the first step is a part of starting
    assert 0 < lines[-1]["effective"] < 1
    account = json.loads(clock_file(log.folder, "test").read_text())
    assert account["seconds"].keys() == CAUSES.keys()
    assert all(account["seconds"][cause] > 0 for cause in ("useful", "data", "checkpoints", "starting", "stopped"))
    assert account["seconds"]["repeated"] == 0
    assert account["saved"]["8"] == account["seconds"]["useful"]
