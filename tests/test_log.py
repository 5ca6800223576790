import threading
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
