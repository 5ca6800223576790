"""Files of chats and preferences: JSONL, plain or compressed (.gz, .zst, .bz2, .lz4), one line at a time."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from puna.endpoint import model_files
from puna.errors import PunaError
from puna.posttrain.data.forms import FORMS, InvalidError, Preference, parse
from puna.recipe import Recipe
from puna.text.message import Chat

ENDINGS = tuple(f".jsonl{packed}" for packed in ("", ".gz", ".zst", ".bz2", ".lz4"))


class File(NamedTuple):
    path: Path
    form: str | None
    """The form that the recipe names; None: each line's keys show it."""

    @property
    def source(self) -> str:
        """What its chats are called by: the name of the file, without endings."""
        return self.path.name.partition(".")[0]


class Line(NamedTuple):
    """What one line holds, or why it holds nothing."""

    source: str
    number: int
    found: Chat | Preference | InvalidError


def find_files(sources: Sequence[str]) -> list[File]:
    """The files of `PATH` or `FORM:PATH`, each a file or a folder of them. PunaError where there is none."""
    files = []
    for source in sources:
        form, colon, rest = source.partition(":")
        named = bool(colon) and form in FORMS
        path = Path(rest if named else source).expanduser()
        found = [each for each in sorted(path.rglob("*")) if each.name.endswith(ENDINGS)] if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise PunaError(
                f"chats.sources: {source!r} names no file and no folder of files ({', '.join(ENDINGS)}); give a path, "
                f"or FORM:PATH with one of the forms {', '.join(FORMS)}"
            )
        files += [File(each, form if named else None) for each in found]
    return files


def read(file: File) -> Iterator[Line]:
    """Every line of a file that is not blank, numbered from 1. PunaError where not one of them can be used."""
    first: Line | None = None
    used = False
    for line in _read(file):
        used = used or not isinstance(line.found, InvalidError)
        first = first or line
        yield line
    if first and not used:
        raise PunaError(
            f"{file.path}: no line can be used; line {first.number}: {first.found}. Name its form as FORM:PATH "
            f"({', '.join(FORMS)}), or take it out of chats.sources"
        )


def _read(file: File) -> Iterator[Line]:
    with BufferedReader(pa.input_stream(str(file.path))) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield Line(file.source, number, _parse(line, file.form))
        except OSError as error:
            raise PunaError(f"{file.path} cannot be unpacked: {error}") from error


def _parse(line: bytes, form: str | None) -> Chat | Preference | InvalidError:
    try:
        record = json.loads(line)
        if b"\\ud" in line.lower():  # halves of surrogate pairs are JSON, but no text
            json.dumps(record, ensure_ascii=False).encode()
    except ValueError as error:  # not UTF-8 included
        return InvalidError("json", str(error))
    if not isinstance(record, dict):
        return InvalidError("json", f"{line[:60]!r} is not an object")
    try:
        return parse(record, form)
    except InvalidError as error:
        return error
    except RecursionError:
        return InvalidError("json", "nested too deep")


def source_digest(recipe: Recipe) -> str:
    """Changes with the names and contents of what the stage reads from outside the run."""
    knobs = recipe.chats
    paths = [file.path for file in find_files(knobs.sources)]
    if knobs.reward_model:
        paths += sorted(path for path in Path(knobs.reward_model).glob("*") if path.is_file())
    judge = Path(knobs.judge.url) if knobs.judge.url else None
    return digest(paths + (model_files(judge) if judge and judge.is_dir() else []))


def digest(paths: Sequence[Path]) -> str:
    """Changes with the names and the contents of files."""
    content = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            content.update(f"{path.name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return content.hexdigest()
