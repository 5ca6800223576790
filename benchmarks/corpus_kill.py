"""Kill the corpus stage at random moments and let it go on, again and again; compare what comes out, byte by byte.

    python benchmarks/corpus_kill.py [--source demo] [--documents 2000] [--kills 50] [--workers 2] [--engine pool]

The stage runs once unharmed. Then it is started, killed with all its processes by SIGKILL after a random part of that
run's time, and started again, until it has been killed so many times; then it may end. A kill takes the whole process
group at once, as a power cut or a scheduler would; every fifth takes a worker only, which the stage has to survive.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

RUN = """
import sys
from pathlib import Path
from puna.log import Log
from puna.recipe import parse_recipe
from puna.run import Run
if __name__ == "__main__":
    folder, source, documents, workers, engine = sys.argv[1:]
    corpus = {"source": source, "workers": int(workers), "engine": engine, "max_documents": int(documents) or None}
    Run(parse_recipe({"name": "kill", "corpus": {k: v for k, v in corpus.items() if v is not None}}, "here"),
        Path(folder)).run(["corpus"])
"""


def digests(folder: Path) -> dict[str, str]:
    """Of all files but the manifest's, which names the versions of the machine as well."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(folder: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    script = folder.parent / "run_corpus.py"
    script.write_text(RUN)
    words = [folder, arguments.source, arguments.documents, arguments.workers, arguments.engine]
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, words)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said.decode())


def kill_worker(process: subprocess.Popen[bytes], pick: random.Random) -> bool:
    """One of its workers, once it has some; False where it ended before."""
    while process.poll() is None:
        try:
            children = psutil.Process(process.pid).children(recursive=True)
            if workers := [child for child in children if "spawn_main" in " ".join(child.cmdline())]:
                pick.choice(workers).kill()
                return True
        except psutil.Error:
            pass
        time.sleep(0.05)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="demo")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="pool")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/puna-kill"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    began = time.monotonic()
    finish(start(arguments.folder / "whole", arguments))
    seconds = time.monotonic() - began
    expected = digests(arguments.folder / "whole" / "corpus")
    print(f"unharmed: {seconds:.1f} s, {len(expected)} files", flush=True)

    pick = random.Random(arguments.seed)
    kills = workers = rounds = differing = 0
    while kills + workers < arguments.kills:
        harmed = arguments.folder / "harmed"
        process = start(harmed, arguments)
        time.sleep(pick.uniform(0, seconds / 4))
        if process.poll() is None and (kills + workers) % 5 == 4:
            workers += kill_worker(process, pick)
            time.sleep(pick.uniform(0, seconds / 4))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            process.communicate()
        if (harmed / "corpus" / "manifest.json").exists():  # it ended in spite of all: compare, and begin anew
            rounds += 1
            differing += digests(harmed / "corpus") != expected
            shutil.rmtree(harmed)
    finish(start(arguments.folder / "harmed", arguments))
    rounds += 1
    differing += digests(arguments.folder / "harmed" / "corpus") != expected
    print(f"killed {kills} times whole, {workers} workers; {rounds} runs came to an end, {differing} of them differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
