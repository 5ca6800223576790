"""The code interpreter: state, output, images, files, limits, interrupt."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools import Toolbox
from puna.tools.python import LOST, Interpreter
from puna.tools.sandbox import launch
from puna.tools.sandbox.launch import Limits, Way


@pytest.fixture(scope="module")
def python(way: Way) -> Iterator[Interpreter]:
    interpreter = Interpreter(Limits(seconds=20, disk=4 << 20, output=2000), way)
    yield interpreter
    interpreter.close()


@pytest.fixture
def short(way: Way) -> Iterator[Interpreter]:
    interpreter = Interpreter(Limits(seconds=0.3), way)
    interpreter.run("kept = 1")
    yield interpreter
    interpreter.close()


def test_variables_imports_and_functions_stay(python: Interpreter):
    assert python.run("import math\nx = 6\ndef double(n): return 2 * n").text == "(no output)"
    assert python.run("double(x) + math.floor(0.5)").text == "12"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("print('a'); print('b')\n3", "a\nb\n3"),
        ("x = 1", "(no output)"),
        ("", "(no output)"),
        ("None", "(no output)"),
        ("'é' * 2", "'éé'"),
        ("for i in range(2): i", "(no output)"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)", "out\nerr"),
        ("import os\n_ = os.write(1, b'low')", "low"),
        ("print('\\ud800')", "?"),
        ("_ = os.write(1, b'\\xff')", "\ufffd"),
        ("__name__", "'__main__'"),
    ],
)
def test_what_is_shown(python: Interpreter, code: str, text: str):
    result = python.run(code)
    assert (result.text, result.error) == (text, False)


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("class Odd:\n    def __repr__(self): raise ValueError('no')\nOdd()", "ValueError: no"),
        ("def deep(): deep()\ndeep()", "RecursionError: maximum recursion depth exceeded"),
        ("'\\x00' + open('a\\x00b')", "ValueError: embedded null byte"),
    ],
)
def test_an_exception_is_told_and_nothing_is_lost(python: Interpreter, code: str, ends: str):
    python.run("still = 'here'")
    result = python.run(code)
    assert result.error
    assert result.text.startswith("error: ")
    assert result.text.rstrip().endswith(ends)
    assert "worker.py" not in result.text
    assert python.run("still").text == "'here'"


def test_a_traceback_shows_the_line(python: Interpreter):
    text = python.run("a = 1\nb = a / 0").text
    assert "line 2" in text
    assert "b = a / 0" in text


def test_long_output_loses_its_middle(python: Interpreter):
    text = python.run("print('start'); print('x' * 100_000); print('end')").text
    assert text.startswith("start\nxxx")
    assert text.endswith("xxx\nend")
    assert "bytes in all" in text
    assert len(text) < 2200
    assert python.run("1").text == "1"


def test_figures_and_pictures_are_results(python: Interpreter):
    code = (
        "class Picture:\n    def _repr_png_(self): return b'\\x89PNG picture'\n"
        "import sys, types\npyplot = types.SimpleNamespace(get_fignums=lambda: [4], close=lambda n: None, "
        "figure=lambda n: types.SimpleNamespace(savefig=lambda file, **_: file.write(b'\\x89PNG figure')))\n"
        "sys.modules['matplotlib.pyplot'] = pyplot\nPicture()"
    )
    assert python.run(code).images == [b"\x89PNG picture", b"\x89PNG figure"]
    python.run("del sys.modules['matplotlib.pyplot']")


def test_a_figure_of_matplotlib(any_way: None):
    with Toolbox(python=Limits()) as toolbox:
        code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.figure()\nprint('two')"
        (result,) = toolbox.run([ToolCall("code_interpreter", {"code": code})])
    if "No module named 'matplotlib'" in result.text:
        pytest.skip("matplotlib is not installed")
    assert result.text == "two"
    assert [image[:8] for image in result.images] == [b"\x89PNG\r\n\x1a\n"] * 2


def test_files_go_up_and_down(python: Interpreter):
    data = bytes(range(256)) * 1000
    python.put_file("folder/in.bin", data)
    assert python.run("open('folder/in.bin', 'rb').read() == bytes(range(256)) * 1000").text == "True"
    python.run("_ = open('out.txt', 'w').write('said')")
    assert python.files() == {"folder/in.bin": 256_000, "out.txt": 4}
    assert python.get_file("out.txt") == b"said"
    for name in ("/etc/passwd", "../x", "a/../../x", ""):
        with pytest.raises(PunaError, match="path inside the interpreter's folder"):
            python.get_file(name)
    with pytest.raises(PunaError, match=r"none\.txt: FileNotFoundError"):
        python.get_file("none.txt")
    with pytest.raises(PunaError, match=r"No space left|File too large"):
        python.put_file("big", bytes((4 << 20) + 1))
    python.run("import os; os.remove('big')")


def test_a_call_that_takes_too_long_is_stopped_and_the_variables_stay(short: Interpreter):
    result = short.run("print('begun')\nwhile True: pass")
    assert result.error
    assert "stopped after 0.3 s" in result.text
    assert "begun" in result.text
    assert short.run("kept").text == "1"


def test_a_call_that_will_not_stop_is_killed(short: Interpreter):
    result = short.run("import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: pass")
    assert result.error
    assert LOST in result.text
    assert "NameError" in short.run("kept").text


def test_a_call_is_interrupted_from_another_thread(python: Interpreter):
    python.run("kept = 2")
    threading.Timer(0.2, python.interrupt).start()
    start = time.monotonic()
    result = python.run("import time\ntime.sleep(15)")
    assert time.monotonic() - start < 10
    assert "KeyboardInterrupt" in result.text
    assert "was interrupted" in result.text
    assert python.run("kept").text == "2"
    python.interrupt()  # nothing runs: nothing happens
    assert python.run("kept").text == "2"


def test_conversations_are_apart(way: Way):
    with ExitStack() as stack:
        first, second = (Interpreter(Limits(), way) for _ in range(2))
        stack.callback(first.close)
        stack.callback(second.close)
        first.put_file("mine.txt", b"mine")
        first.run("mine = 1")
        assert second.files() == {}
        assert second.run("import os; os.listdir()").text == "[]"
        assert "NameError" in second.run("mine").text
        if os.getuid() == 0:
            users = {one.run("import os; os.getuid()").text for one in (first, second)}
            assert len(users | {"0"}) == 3


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which lets them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_the_program_ends_the_call(any_way: None, interruptible: None):
    with Toolbox(python=Limits()) as toolbox:
        toolbox.run([ToolCall("code_interpreter", {"code": "kept = 1"})])
        threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            toolbox.run([ToolCall("code_interpreter", {"code": "import time; time.sleep(20)"})])
        (result,) = toolbox.run([ToolCall("code_interpreter", {"code": "kept"})])
        assert time.monotonic() - start < 15
        assert result.text == "1"


def test_nothing_runs_between_calls(python: Interpreter):
    code = "import threading\nticks = 0\ndef tick():\n    global ticks\n    while True: ticks += 1"
    python.run(code + "\nthreading.Thread(target=tick, daemon=True).start()")
    counts = [int(python.run(f"import time; time.sleep({seconds}); ticks").text) for seconds in (0, 0.3)]
    time.sleep(0.3)
    counts.append(int(python.run("ticks").text))
    python.close()
    while_called, between = counts[1] - counts[0], counts[2] - counts[1]
    assert between < while_called / 3


def test_the_death_of_the_interpreter_is_told_and_mended(python: Interpreter):
    python.run("kept = 3")
    result = python.run("import os\nos._exit(0)")
    assert result.error
    assert LOST in result.text
    assert "NameError" in python.run("kept").text


EVERYWHERE = """
import os
def write(data):
    for fd in range(3, 20):
        try: os.write(fd, data)
        except OSError: pass
"""


def test_forged_replies_reach_only_their_own_conversation(python: Interpreter):
    for line in ("not json", "[]", '{"number": -1}', '{"ready": true}'):
        assert python.run(f"{EVERYWHERE}write({line!r}.encode() + b'\\n')").text
        assert python.run("41 + 1").text in ("42", "(no output)")
        python.close()


def test_an_endless_reply_ends(python: Interpreter, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "MOST_BYTES", 1 << 20)
    assert LOST in python.run(f"{EVERYWHERE}while True: write(bytes(65536))").text


def test_an_interpreter_that_takes_no_request_is_killed(short: Interpreter):
    forge = "for number in range(50): write(b'{\"number\": %d}\\n' % number)"
    short.run(f"{EVERYWHERE}import signal\nsignal.signal(2, signal.SIG_IGN)\n{forge}\nwhile True: pass")
    with pytest.raises(PunaError, match="variables and files are gone"):
        short.put_file("big", bytes(1 << 20))
    assert "NameError" in short.run("kept").text


def test_a_forked_process_makes_its_own(any_way: None):
    code = """
import os
from puna.tools.python import Interpreter
python = Interpreter()
python.run("1")
child = os.fork()
other = Interpreter() if child == 0 else python
print(other.run("6 * 7").text, flush=True)
other.close()
if child == 0: os._exit(0)
os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["42", "42"], done.stderr


def test_a_reply_that_is_no_file(python: Interpreter):
    python.run(EVERYWHERE + "for number in range(200): write(b'{\"number\": %d}\\n' % number)")
    with pytest.raises(PunaError, match=r"x\.txt: the interpreter gives no file"):
        python.get_file("x.txt")
    python.close()


def test_no_sandbox_no_python(monkeypatch: pytest.MonkeyPatch):
    def fail(way: str, limits: Limits, python: str) -> launch.Sandbox:
        raise OSError(f"no {way}")

    monkeypatch.setattr(launch, "_start", fail)
    with pytest.raises(PunaError, match=r"does not run without a sandbox.*bwrap: no bwrap; namespaces: no namesp"):
        Interpreter().run("1")
    with Toolbox(python=Limits()) as toolbox:
        (result,) = toolbox.run([ToolCall("code_interpreter", {"code": "1"})])
        assert result.error
        assert "Install bubblewrap" in result.text
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(PunaError, match="needs Linux"):
        Interpreter().run("1")


@pytest.mark.parametrize("limit", ["seconds", "memory", "disk", "threads", "output"])
def test_limits_that_leave_no_room_are_refused(limit: str):
    with pytest.raises(PunaError, match=f"Limits.{limit}=0: give at least"):
        Limits(**{limit: 0})


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_dies_with_the_program_that_started_it(way: Way):
    code = (
        "import os\nfrom puna.tools.python import Interpreter\nfrom puna.tools.sandbox.launch import Limits\n"
        f"python = Interpreter(Limits(), {way!r})\npython.run('1')\nprint(python._sandbox.inside, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    inside = int(done.stdout)
    assert done.returncode == -9
    for _ in range(200):
        if not alive(inside):
            return
        time.sleep(0.02)
    pytest.fail("the worker lives on")
