"""A training under torchrun loses one of its two nodes, and goes on with half of the data-parallel processes."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from puna.log import Log
from puna.pretrain import pretrain
from puna.recipe import Recipe, parse_recipe
from puna.recipe.layout import Layout
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

STEPS, ROWS, SEQ_LEN = 30, 6, 32
PROCESS = """
import json, os, pickle, sys
from puna.log import Log
from puna.pretrain import pretrain
from puna.train.launch import follow

recipe, inputs, out = pickle.load(open(sys.argv[1], "rb"))
(out.parent / f"started-{os.getpid()}").write_text(json.dumps([os.environ["WORLD_SIZE"], os.getppid()]))
if not follow():
    pretrain.run(recipe, inputs, out, Log(out.parent / "log", "pretrain", quiet=True))
"""


def make_inputs(folder: Path) -> dict[str, Path]:
    """A tokenizer of single bytes, and this file as text."""
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    tokenizer.save(folder / "tokenizer")
    ids = [i for line in Path(__file__).read_text().splitlines() for i in tokenizer.encode(line, bos=True)]
    (folder / "shards").mkdir()
    np.array([*ids, tokenizer.bos_id], np.uint16).tofile(folder / "shards" / "code.bin")
    (folder / "shards" / "shards.json").write_text(json.dumps({"dtype": "uint16"}))
    return {"tokenizer": folder / "tokenizer", "shards": folder / "shards"}


def make_recipe() -> Recipe:
    model = {"preset": "1m", "dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn_dim": 64}
    training = {
        "mix": {"code": 1.0}, "max_epochs": 1e6, "tokens": STEPS * ROWS * SEQ_LEN, "seq_len": SEQ_LEN,
        "batch_rows": ROWS, "micro_rows": 1, "peak_lr": 1e-3, "warmup_steps": 2, "precision": "fp32", "compile": "off",
        "epsilon": 1e-4, "keep_every": 4, "layout": {"recompute": "full"},
    }  # fmt: skip
    return parse_recipe({"name": "test", "model": model, "pretrain": training}, "test")


def start_node(folder: Path, name: str, port: int) -> subprocess.Popen[bytes]:
    """An agent of torchrun with two processes; one or two such nodes train together. The first keeps their store, which
    a run cannot lose."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "2"),
        *("--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"),
        *("--local-addr", "127.0.0.1", "--rdzv-conf", f"last_call_timeout=10,is_host={name == 'first'}"),
        *("--monitor-interval", "0.2"),
        *(str(folder / "process.py"), str(folder / "arguments")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def lines(folder: Path) -> list[dict[str, float]]:
    path = folder / "log" / "pretrain.jsonl"
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    return [json.loads(line) for line in whole]


def workers(folder: Path) -> list[tuple[int, int, int]]:
    """(number of processes that train together, agent, process) of all that were started."""
    found = []
    for path in folder.glob("started-*"):
        size, agent = json.loads(path.read_text())
        found.append((int(size), agent, int(path.name.removeprefix("started-"))))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the loopback interface is called otherwise")
def test_a_run_that_loses_a_node_goes_on_with_the_other(tmp_path: Path) -> None:
    inputs, recipe = make_inputs(tmp_path), make_recipe()
    for name in ("alone", "elastic"):
        (tmp_path / name / "out").mkdir(parents=True)
    alone, folder = tmp_path / "alone", tmp_path / "elastic"
    one = recipe.pretrain.model_copy(update={"processes": 1, "layout": Layout()})
    pretrain.run(
        recipe.model_copy(update={"pretrain": one}), inputs, alone / "out", Log(alone / "log", "pretrain", quiet=True)
    )

    (folder / "process.py").write_text(PROCESS)
    (folder / "arguments").write_bytes(pickle.dumps((recipe, inputs, folder / "out")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [start_node(folder, name, port) for name in ("first", "second")]
    try:
        while len(lines(folder)) < 10:
            assert nodes[0].poll() is None, (folder / "first.log").read_text()
            time.sleep(0.05)
        lost = nodes[1].pid
        for pid in [lost, *(process for size, agent, process in workers(folder) if (size, agent) == (4, lost))]:
            os.kill(pid, signal.SIGKILL)
        before = len(lines(folder))
        assert nodes[0].wait() == 0, (folder / "first.log").read_text()
    finally:
        for node in nodes:
            node.kill()
            node.wait()

    assert before < STEPS, "it was at work still"
    sizes = [size for size, _, _ in workers(folder)]
    assert (sizes.count(4), sizes.count(2)) == (4, 2)
    undisturbed, told = lines(alone), lines(folder)
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in told] == pytest.approx([line["loss"] for line in undisturbed], rel=1e-6)
