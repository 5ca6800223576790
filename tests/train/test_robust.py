"""Steps that fail, processes that hang, and requests to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import Llama
from puna.recipe import Training
from puna.train.batches import Batch
from puna.train.guard import WINDOW, Guard
from puna.train.launch import Preempted, World
from puna.train.loop import train
from puna.train.losses import NextToken
from puna.train.watch import Note, describe, late_ones, slowest

MakeModel = Callable[[], Llama]
MakeOptions = Callable[..., Training]


class Poisoned:
    """Rows of which some make the loss infinite: their labels are out of the ordinary."""

    def __init__(self, rows: Any, bad: Sequence[int]) -> None:
        self.all, self.bad = rows, bad

    def __len__(self) -> int:
        return len(self.all)

    def rows(self, numbers: Sequence[int]) -> Batch:
        batch = self.all.rows(numbers)
        bad = torch.tensor([number in self.bad for number in numbers])
        batch.scored = bad[:, None].expand_as(batch.tokens)
        return batch


class Poison(NextToken):
    def __call__(self, hidden: torch.Tensor, weight: torch.Tensor, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        assert batch.scored is not None
        value = super().__call__(hidden, weight, batch, counts)
        return value * float("inf") if batch.scored.any() else value


@pytest.fixture
def attempt(make_model: MakeModel, make_options: MakeOptions, random_rows: Any, tmp_path: Path):
    """attempt(name, bad rows, knobs) trains eight steps of four rows: the weights and the lines of the log."""

    def run(name: str, bad: Sequence[int] = (), **changed: Any) -> tuple[torch.Tensor, list[dict[str, float]]]:
        model, log = make_model(), Log(tmp_path / name / "log", "test")
        options = make_options(**{"checkpoint_seconds": 1e9} | changed)
        train(model, Poisoned(random_rows(32), bad), Poison(), options, World(), tmp_path / name, log, "test")
        flat = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        return flat, [json.loads(line) for line in log.path.read_text().splitlines()]

    return run


def test_a_step_that_is_not_finite_is_skipped_and_counted(attempt: Any):
    weights, lines = attempt("bad", [13])
    assert torch.isfinite(weights).all()
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert lines[3]["loss"] == float("inf")
    straight, others = attempt("straight")
    assert [line["loss"] for line in lines[:3]] == [line["loss"] for line in others[:3]]
    assert not torch.equal(weights, straight)


def test_after_several_in_a_row_it_goes_back_and_passes_over_the_rows_between(
    attempt: Any, monkeypatch: pytest.MonkeyPatch
):
    messages: list[str] = []
    monkeypatch.setattr(Log, "message", lambda self, text: messages.append(text))
    knobs = {"patience": 2, "rewind_steps": 2, "keep_every": 1}
    weights, lines = attempt("bad", [16, 20], **knobs)  # the steps 5 and 6
    assert "2 steps in a row failed from step 5" in messages[-2]
    assert "the weights are again those of step 2" in messages[-2]
    assert lines[-1]["skipped"] == 2
    assert len(lines) == 8
    assert torch.isfinite(weights).all()
    with pytest.raises(PunaError, match=r"at step 6 are not finite; lower peak_lr"):
        attempt("hopeless", [16, 20], **knobs | {"max_rewinds": 0})
    with pytest.raises(PunaError, match=r"at step 6 are not finite"):
        attempt("nothing to go back to", [16, 20], patience=2, rewind_steps=2)


def test_a_spike_is_one_beside_the_median(make_options: MakeOptions):
    guard = Guard(make_options(spike=5.0))
    assert guard.allows(1.0, 1000.0)  # nothing to compare it with
    assert all(guard.allows(1.0, 1.0 + i / WINDOW) for i in range(WINDOW))
    assert guard.allows(1.0, 7.4)
    assert not guard.allows(1.0, 7.8)
    assert (guard.skipped, guard.in_a_row) == (1, 1)
    assert guard.allows(1.0, 1.0)
    assert (guard.skipped, guard.in_a_row, guard.exhausted) == (1, 0, False)
    assert not guard.allows(float("nan"), 1.0)
    again = Guard(make_options(spike=5.0))
    for name, tensor in guard.memory.items():
        again.memory[name].copy_(tensor)
    assert (again.good, again.skipped, again.in_a_row) == (guard.good, 2, 1)


def terminate(step: int, _: Any) -> None:
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_stops_and_loses_nothing(
    make_model: MakeModel, make_options: MakeOptions, random_rows: Any, tmp_path: Path
):
    found = []
    before = signal.getsignal(signal.SIGTERM)
    for name in ("straight", "stopped"):
        model, log = make_model(), Log(tmp_path / name / "log", "test")
        arguments = (NextToken(), make_options(checkpoint_seconds=1e9), World(), tmp_path / name, log, "test")
        if name == "stopped":
            with pytest.raises(Preempted, match="test stopped after step 4 of 8"):
                train(model, random_rows(32), *arguments, terminate)
            assert [path.name for path in (tmp_path / name).glob("step-*")] == ["step-000000004.safetensors"]
            model = make_model()
        train(model, random_rows(32), *arguments)
        found.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
    assert torch.equal(*found)
    assert signal.getsignal(signal.SIGTERM) == before


HANGING = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from puna.train.launch import launch
from puna.train.watch import Watch

def work(world, folder):
    with Watch(world, 2.0) as watch:
        for step in range(3):
            watch.at(step, "reading rows")
            if world.rank == 1 and step == 2:
                time.sleep(1000)
            watch.at(step, "training")
            dist.barrier()

if __name__ == "__main__":
    launch(work, 3, Path(sys.argv[1]))
"""


def test_processes_that_hang_end_and_name_the_one_they_waited_for(tmp_path: Path):
    (tmp_path / "hanging.py").write_text(HANGING)
    command = [sys.executable, str(tmp_path / "hanging.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "step 3 has not got on for 2 seconds (hang_seconds); late is rank 1 (last seen" in done.stderr
    assert "in work" in done.stderr  # the stack of the one that is late
    assert "a training process ended unasked" in done.stderr
    assert done.returncode != 0


STOPPED = """
import os, sys, time
from pathlib import Path
from puna.train.launch import launch
from puna.train.watch import Watch

def work(world, folder):
    with Watch(world, 4.0) as watch:  # a busy machine may well leave a process without a core for a second
        for step in range(12):
            watch.at(step, "training")
            time.sleep(0.25)
            if world.rank == 0 and step == 1:
                Path(folder, "begun").touch()

if __name__ == "__main__":
    launch(work, 2, Path(sys.argv[1]))
"""


def test_a_training_that_was_stopped_for_long_goes_on(tmp_path: Path):
    (tmp_path / "stopped.py").write_text(STOPPED)
    command = [sys.executable, str(tmp_path / "stopped.py"), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (tmp_path / "begun").exists() and process.poll() is None:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(6)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.stderr
        told = process.stderr.read()
    assert process.returncode == 0, told


def test_who_is_late():
    now = 100.0
    notes = {0: Note(7, 1, now), 1: Note(7, 0, now), 2: Note(7, 1, now), 3: Note(6, 1, now)}
    assert late_ones(notes, now, 15) == [1, 3]
    assert late_ones(notes | {2: Note(7, 1, now - 20), 4: None}, now, 15) == [2, 4]
    assert late_ones({0: Note(7, 1, now), 1: Note(7, 1, now)}, now, 15) == []
    assert "rank 1 (last seen reading rows of step 8)" in describe(notes, [1], 0, 7, 600)
    assert "all are at the same place" in describe(notes, [], 0, 7, 600)


SLOW = """
import sys, time
from pathlib import Path
import torch
from puna.log import Log
from puna.model.llama import Llama, LlamaConfig
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.train import watch
from puna.train.batches import Batch
from puna.train.launch import launch
from puna.train.loop import train
from puna.train.losses import NextToken

class Rows:
    def __len__(self):
        return 10_000
    def rows(self, numbers):
        tokens = torch.randint(50, (len(numbers), 17))
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros_like(tokens[:, 1:]))

class Slow(NextToken):
    def __call__(self, hidden, *rest):
        time.sleep(0.2 * (SLOW_RANK == 1))
        return super().__call__(hidden, *rest)

def named(step, module):
    text = log.path.read_text() if log.path.exists() else ""
    if "straggler" in text:
        raise RuntimeError("it is named")

def work(world, folder, layout):
    global SLOW_RANK, log
    SLOW_RANK, log = world.rank, Log(folder / "log", "test")
    watch.LOOK = 1
    watch.product_seconds = lambda device: 0.5 if world.rank == 1 else 0.2
    options = Training(seq_len=16, batch_rows=3, compile="off", precision="fp32", hang_seconds=1.2, layout=layout)
    model = Llama(LlamaConfig(50, dim=16, layers=1, heads=2, kv_heads=1, ffn_dim=16))
    train(model, Rows(), Slow(), options, world, folder / "work", log, "test", named)

if __name__ == "__main__":
    launch(work, 3, Path(sys.argv[1]), Layout(**eval(sys.argv[2])))
"""


@pytest.mark.parametrize("layout", [{}, {"shard": 3}], ids=["whole", "parts"])
def test_a_slow_process_is_named(tmp_path: Path, layout: dict[str, int]):
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "slow.py"), str(tmp_path), str(layout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "it is named" in done.stderr
    assert "rank 1 is slow: it takes " in done.stderr
    last = json.loads((tmp_path / "log" / "test.jsonl").read_text().splitlines()[-1])
    assert last["straggler"] == 1
    assert last["straggler_factor"] > 1.5


def test_the_slowest_is_measured_by_the_median():
    assert slowest({0: 1.0, 1: 1.1, 2: 2.0, 3: 1.0}, 1.5) == (2, 2.0)
    assert slowest({0: 1.0, 1: 1.1, 2: 1.4}, 1.5) is None
    assert slowest({0: 3.0, 1: 1.0}, 1.5) == (0, 3.0)
    assert slowest({0: 3.0}, 1.5) is None
