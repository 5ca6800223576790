"""A file that others import, taken out of its repository: who depends on it, and what was in it (section 4.3.4)."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from puna.errors import PunaError


class Missing(NamedTuple):
    """A file, those that import it, and all others, each by its path in the repository."""

    path: str
    importers: list[str]
    files: dict[str, str]

    @property
    def answer(self) -> str:
        depending = "\n".join(f"- {path}" for path in self.importers)
        held = f"```python\n{self.files[self.path]}\n```"
        return f"These files depend on it:\n\n{depending}\n\nIt has to hold this:\n\n{held}"

    def shown(self, path: str) -> str:
        return f"# {path}\n```python\n{self.files[path]}\n```"

    def question(self, paths: list[str]) -> str:
        """The repository as far as these of its files, without the missing one."""
        shown = "\n\n".join(self.shown(path) for path in paths)
        return f"{shown}\n\nThe file {self.path} is missing here. Which of these files depend on it, and what is in it?"


def find_missing(folder: Path, importers: int) -> Iterator[Missing]:
    """Every file of a folder that at least so many others import, by path. PunaError where there is no folder."""
    if not folder.is_dir():
        raise PunaError(f"synthesize.repositories: there is no folder {folder}")
    files = {}
    for path in sorted(folder.rglob("*.py")):
        try:
            files[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8").strip("\n")
        except (OSError, UnicodeDecodeError):
            continue  # what cannot be read is no part of the repository
    modules = {name: path for path in files for name in names_of(path)}
    users: dict[str, list[str]] = {path: [] for path in files}
    for path, text in files.items():
        for used in sorted({modules[name] for name in imported(path, text) if name in modules} - {path}):
            users[used].append(path)
    for path, using in users.items():
        if len(using) >= importers and files[path].strip():
            yield Missing(path, using, files)


def names_of(path: str) -> list[str]:
    """The module names of a file: from the repository's root, and from src/ where it lies there."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return [".".join(parts)] + ([".".join(parts[1:])] if parts[0] == "src" and parts[1:] else [])


def imported(path: str, text: str) -> set[str]:
    """Names of all modules that a file may import; `from a import b` may mean a module b, or a name in a."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.removesuffix(".py").split("/")[: -node.level] if node.level else []
            base = ".".join([*package, *(node.module.split(".") if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" if base else alias.name for alias in node.names}
    return found
