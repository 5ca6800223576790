"""Whether a program holds: it is parsed, linted and run against tests in the sandbox (section 4.3.1).

The linter is ruff with the rules of pyflakes where it is installed. Else names that nothing defines are looked for,
which finds less.
"""

import ast
import builtins
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import xxhash

from puna.tools import Limits
from puna.tools.python import Interpreter

LIMITS = Limits(seconds=10.0, memory=1 << 30, disk=16 << 20, threads=8, output=4000)
RUN_TESTS = """

for _name, _test in list(globals().items()):
    if _name.startswith("test") and callable(_test):
        _test()
"""
_KNOWN = {*dir(builtins), "__name__", "__file__", "__doc__"}


@cache
def ruff() -> str | None:
    """The linter that is installed."""
    return shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")


def linter() -> str:
    """What lints here: a cause of the results."""
    path = ruff()
    if path is None:
        return "names"
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def static_problem(code: str) -> str | None:
    """What the parser or the linter says against a program, None for nothing."""
    try:
        tree = ast.parse(code)
        compile(tree, "solution.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    path = ruff()
    if path is None:
        return "\n".join(f"undefined name {name}" for name in undefined(tree)) or None
    command = [path, "check", "--isolated", "--no-cache", "--select", "E9,F", "--output-format", "concise", "--quiet"]
    told = subprocess.run(
        [*command, "--stdin-filename", "solution.py", "-"], input=code, capture_output=True, text=True
    )
    return told.stdout.strip() or None


def undefined(tree: ast.AST) -> list[str]:
    """Names that are read and that nothing in the whole program binds, whatever the scope."""
    bound, read = set(_KNOWN), set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.alias():
                bound.add((node.asname or node.name).partition(".")[0])
                if node.name == "*":
                    return []
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.Global(names=names) | ast.Nonlocal(names=names):
                bound.update(names)
    return sorted(read - bound)


def run(code: str, limits: Limits = LIMITS) -> tuple[bool, str]:
    """Whether a program runs to its end in a sandbox of its own, and what it prints or fails with."""
    end = f"ran to the end {xxhash.xxh3_128_hexdigest(code.encode('utf-8', 'replace'))}"
    interpreter = Interpreter(limits)
    try:
        result = interpreter.run(f"{code}\n\nprint({f'{chr(10)}{end}'!r})\n")
    finally:
        interpreter.close()
    whole = not result.error and result.text.rstrip().endswith(end)
    return whole, result.text.replace(end, "").strip()


def failing(code: str, tests: str) -> str | None:
    """What tests say against a program: None where all hold. Functions whose names begin with test are called."""
    whole, output = run(f"{code}\n\n{tests}\n{RUN_TESTS}")
    return None if whole else output or "the program ended before its tests did"


def is_vacuous(code: str, tests: str) -> bool:
    """Whether tests hold for a program whose functions do nothing: such tests show nothing."""
    return failing(ast.unparse(_Hollow().visit(ast.parse(code))), tests) is None


class _Hollow(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.body = [ast.Return(ast.Constant(None))]
        return node
