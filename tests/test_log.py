import pickle
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from puna.errors import PunaError
from puna.log import Log


def test_closing_ends_the_writer_to_tensorboard(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    log = Log(tmp_path, "stage")
    log.figures(1, loss=2.0)
    log.close()
    assert set(threading.enumerate()) == before  # it would go on writing, into folders that may be gone
    log.figures(2, loss=1.0)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard" / "stage")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


def test_a_restarted_stage_goes_on_in_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []

    def init(**settings: Any) -> SimpleNamespace:
        begun.append(settings)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (1, 2):
        log = pickle.loads(pickle.dumps(Log(tmp_path / "mine" / "log", "sft", wandb="llamas")))
        log.figures(step, loss=3.0 - step)
        log.close()
    Log(tmp_path / "mine" / "log", "sft").figures(3, loss=0.0)
    assert logged == [(1, {"loss": 2.0}), (2, {"loss": 1.0})]
    assert begun[0] == begun[1]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("llamas", "mine sft", "allow")


def test_wandb_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PunaError, match=r"puna\[wandb\]"):
        Log(tmp_path, "sft", wandb="llamas").figures(1, loss=1.0)
