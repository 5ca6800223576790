"""What a call of the Python tool costs: starting its sandbox, calling in it, and calls from many conversations.

    python benchmarks/sandbox.py [PYTHON]

PYTHON is the one to run inside, this one by default; /usr/bin/python3 where a plain user may not read this one's
folder. Milliseconds: the median and 90th percentile on the wall, and the mean of the CPU's, which is what counts on a
machine that does other things too (bubblewrap's children are not ours to count). Beside them, only starting the same
Python.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from puna.tools.python import Interpreter
from puna.tools.sandbox.launch import WAYS, SandboxError, Way

ROUNDS = 30


def timed(function: Callable[[], object], rounds: int = ROUNDS) -> str:
    times, before = [], cpu()
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    tenth = statistics.quantiles(times, n=10)[-1]
    return f"{statistics.median(times):8.2f} {tenth:8.2f} {1000 * (cpu() - before) / rounds:8.2f}"


def cpu() -> float:
    """CPU seconds of this process and its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def first_call(way: Way, python: str) -> None:
    """A conversation of one call: start, call, end."""
    interpreter = Interpreter(way=way, python=python)
    assert interpreter.run("6 * 7").text == "42"
    interpreter.close()


def main(python: str = sys.executable) -> None:
    print(f"{'':44s}   median     90 %      CPU")
    print(f"{'python -I alone, no sandbox':44s} {timed(lambda: subprocess.run([python, '-I', '-c', '6 * 7']))}")
    for way in WAYS:
        try:
            first_call(way, python)
        except SandboxError as error:
            print(f"{way}: {error}")
            continue
        interpreter = Interpreter(way=way, python=python)
        interpreter.run("x = 6")

        def several(way: Way = way) -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: first_call(way, python), range(4)))

        print(f"{way + ': first call (start, call, end)':44s} {timed(lambda way=way: first_call(way, python))}")
        print(f"{way + ': later call':44s} {timed(lambda one=interpreter: one.run('x * 7'), 300)}")
        print(f"{way + ': later call, 100 lines printed':44s} {timed(lambda one=interpreter: one.run(LINES), 300)}")
        print(f"{way + ': four conversations at once':44s} {timed(several, 8)}")
        interpreter.close()


LINES = "for i in range(100): print(i)"

if __name__ == "__main__":
    main(*sys.argv[1:])
