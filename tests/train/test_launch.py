"""The processes of a training do not outlive the one that launched them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from puna.train.launch import World, launch

SLEEPING = """
import os, sys, time
from pathlib import Path
from puna.train.launch import launch

def work(world, folder):
    Path(folder, f"began-{os.getpid()}").touch()
    time.sleep(1000)

if __name__ == "__main__":
    launch(work, 2, sys.argv[1])
"""


def test_processes_end_with_the_one_that_launched_them(tmp_path: Path):
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    command = [sys.executable, str(tmp_path / "sleeping.py"), str(tmp_path)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while len(found := list(tmp_path.glob("began-*"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        trained = [psutil.Process(int(path.name.removeprefix("began-"))) for path in found]
        process.kill()
    _, alive = psutil.wait_procs(trained, timeout=60)
    for child in alive:
        child.kill()
    assert not alive


def note_threads(world: World, folder: Path) -> None:
    (folder / f"{world.rank} of {world.size}").write_text(str(torch.get_num_threads()))


@pytest.mark.parametrize(("processes", "threads"), [(1, "3"), (2, "1")])
def test_one_process_has_all_threads_and_several_have_one_each(tmp_path: Path, processes: int, threads: str):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        launch(note_threads, processes, tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert [(tmp_path / f"{rank} of {processes}").read_text() for rank in range(processes)] == [threads] * processes
