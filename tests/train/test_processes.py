"""Whole pretraining runs: on two processes as on one, and killed without warning."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puna.errors import PunaError
from puna.log import Log
from puna.pretrain import pretrain
from puna.recipe import Recipe, Training, parse_recipe
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train import launch

MODEL = {"preset": "1m", "dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_dim": 64}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A tokenizer of single bytes, and shards of this file with a document a line."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    tokenizer.save(tmp_path / "tokenizer")
    shards = tmp_path / "shards"
    shards.mkdir()
    ids = [i for line in Path(__file__).read_text().splitlines() for i in tokenizer.encode(line, bos=True)]
    np.array([*ids, tokenizer.bos_id], np.uint16).tofile(shards / "code.bin")
    (shards / "shards.json").write_text(json.dumps({"dtype": "uint16"}))
    return {"tokenizer": tmp_path / "tokenizer", "shards": shards}


def make_recipe(steps: int, **changed: Any) -> Recipe:
    training = {
        "mix": {"code": 1.0}, "max_epochs": 1e6, "tokens": steps * 8 * 32, "seq_len": 32, "batch_rows": 8,
        "micro_rows": 2, "peak_lr": 3e-3, "warmup_steps": 2, "precision": "fp32", "compile": "off", "processes": 1,
        "epsilon": 1e-5,
    }  # fmt: skip
    return parse_recipe({"name": "test", "model": MODEL, "pretrain": training | changed}, "test")


def make_out(folder: Path) -> tuple[Path, Log]:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    return folder / "out", Log(folder / "log", "pretrain")


def losses(log: Log) -> dict[int, float]:
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line["loss"] for line in lines}


def test_two_processes_train_the_same_model_as_one(inputs: dict[str, Path], tmp_path: Path):
    found = []
    for processes in (1, 2):
        out, log = make_out(tmp_path / str(processes))
        pretrain.run(make_recipe(6, processes=processes, checkpoint_seconds=1e-9), inputs, out, log)
        state = load_file(out.parent / "work" / "step-000000006.safetensors")
        found.append((torch.cat([t.flatten() for name, t in state.items() if name != "random"]), losses(log)))
    (one, one_losses), (two, two_losses) = found
    assert two_losses == pytest.approx(one_losses, rel=1e-6)
    assert ((one - two).norm() / one.norm()).item() < 1e-6
    assert not torch.equal(one, two)  # sums in another order: there were two processes indeed


def test_an_error_in_a_process_is_told_as_one(inputs: dict[str, Path], tmp_path: Path):
    with pytest.raises(PunaError, match=r"^pretrain.mix names 'law', but the corpus has the parts code$"):
        pretrain.run(make_recipe(6, processes=2, mix={"law": 1.0}), inputs, *make_out(tmp_path))


CHILD = """
import pickle, sys
from puna.pretrain import pretrain
pretrain.run(*pickle.load(open(sys.argv[1], "rb")))
"""


def test_killed_at_any_moment_it_makes_the_same_artifact(inputs: dict[str, Path], tmp_path: Path):
    recipe = make_recipe(100, checkpoint_seconds=0.05)
    straight, log = make_out(tmp_path / "straight")
    pretrain.run(recipe, inputs, straight, log)

    broken, broken_log = make_out(tmp_path / "broken")
    (tmp_path / "arguments").write_bytes(pickle.dumps((recipe, inputs, broken, broken_log)))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "arguments")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as child:
        while not list((broken.parent / "work").glob("*.safetensors")) and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL  # it was at work still
    assert not list(broken.iterdir())
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "pretraining goes on from step" in again.stderr

    assert losses(broken_log) == losses(log)
    files = [path.relative_to(straight) for path in sorted(straight.rglob("*")) if path.is_file()]
    assert Path("model.safetensors") in files
    assert {f: (straight / f).read_bytes() for f in files} == {f: (broken / f).read_bytes() for f in files}


def test_the_processes_are_as_asked_or_as_many_as_divide(
    make_options: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "physical_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    count = launch.count_processes
    assert count(make_options(batch_rows=8, micro_rows=2, processes="auto")) == 4
    assert count(make_options(batch_rows=12, micro_rows=2, processes="auto")) == 3
    assert count(make_options(batch_rows=10, micro_rows=2, processes="auto")) == 1
    assert count(make_options(batch_rows=10, micro_rows=2, processes=5)) == 5
    with pytest.raises(PunaError, match="processes = 3 does not divide the 5 micro-batches"):
        count(make_options(batch_rows=10, micro_rows=2, processes=3))
