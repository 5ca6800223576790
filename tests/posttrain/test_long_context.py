"""Chats on long texts: of the asked length, of the asked share, with the whole text before the question."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.log import Log
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.synthesis.long_context import QUESTIONS, REQUEST, SUMMARY
from puna.posttrain.synthesis.repository import find_missing, imported, names_of
from puna.posttrain.synthesize import run
from puna.recipe import Recipe
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from tests.openai_server import Reply, answering, completion


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    files = {
        "pkg/__init__.py": "",
        "pkg/core.py": "def core():\n    return 1",
        "pkg/a.py": "from pkg.core import core",
        "pkg/b.py": "from .core import core",
        "pkg/c.py": "from . import core",
        "main.py": "import pkg.core",
        "other.py": "import json\nfrom pkg import a",
        "broken.py": "import pkg.core as (",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def test_files_that_others_import_are_found(repository: Path):
    (missing,) = find_missing(repository, 4)
    assert missing.path == "pkg/core.py"
    assert missing.importers == ["main.py", "pkg/a.py", "pkg/b.py", "pkg/c.py"]
    assert "def core()" in missing.answer
    assert "def core()" not in missing.question(missing.importers)
    assert [each.path for each in find_missing(repository, 1)] == ["pkg/a.py", "pkg/core.py"]
    assert names_of("src/pkg/__init__.py") == ["src.pkg", "pkg"]
    assert imported("a/b/c.py", "from ..d import e") == {"a.d", "a.d.e"}


@pytest.fixture
def inputs(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    folder = tmp_path / "corpus"
    (folder / "documents").mkdir(parents=True)
    texts = {f"long{i}": " ".join(f"w{i}x{n}" for n in range(400)) for i in range(8)} | {"short": "too short " * 20}
    rows = [{"id": name, "title": "t", "language": "en", "text": text} for name, text in texts.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents" / "general.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "held_out.parquet")
    tokenizer.save(tmp_path / "tokenizer")
    return {"corpus": folder, "tokenizer": tmp_path / "tokenizer"}


def reply(request: dict[str, Any]) -> Reply:
    system, text = (message["content"] for message in request["messages"][:2])
    words = re.findall(r"w\dx\d+", text)
    if system == SUMMARY:
        return completion(f"From {words[0]} to {words[-1]}.")
    assert system == QUESTIONS
    return completion(f"Q: What is first?\nA: {words[0]}\n\nQ: What is last?\nA: {words[-1]}")


FEW = {"tool_chats": 0, "plain_chats": 12, "question_chats": 0, "preference_problems": 0}


def test_long_chats_have_their_length_and_share(
    inputs: dict[str, Path],
    repository: Path,
    make_recipe: Callable[..., Recipe],
    out: Path,
    log: Log,
    tokenizer: Tokenizer,
):
    with answering(reply) as server:
        knobs = FEW | {
            "long_lengths": [1536, 2560], "long_share": 0.4, "long_chunk": 300, "repositories": [str(repository)],
            "importers": 4, "endpoint": {"url": server.url, "model": "m"},
        }  # fmt: skip
        run(make_recipe(synthesize=knobs), inputs, out, log)
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        run(make_recipe(synthesize=knobs), inputs, out, log)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    lines = list(read_jsonl(out / "sft.jsonl"))
    found = [line for line in lines if line.get("source") == "long-context"]
    assert len(found) / len(lines) == 0.4
    assert {line["kind"] for line in found} == {"questions", "summary", "repository"}
    assert {line["length"] for line in found} == {1536, 2560}
    for line in found:
        ids = render(to_chat(line), tokenizer).ids
        assert len(ids) <= line["length"]
        asked = line["messages"][0]["content"]
        if line["kind"] == "questions":
            assert len(ids) > line["length"] / 2
            assert line["messages"][1]["content"] in asked
        elif line["kind"] == "summary":
            assert asked.endswith(REQUEST)
            start, end = re.findall(r"w\dx\d+", line["messages"][1]["content"])
            assert asked.startswith(start)
            assert end in asked[-60 - len(REQUEST) :]
        else:
            assert "pkg/core.py is missing" in asked
    assert not any(drop["name"] == "short" and drop["reason"] != "short" for drop in read_jsonl(out / "dropped.jsonl"))


def test_the_share_decides_how_many_and_repositories_need_no_model(
    inputs: dict[str, Path], repository: Path, make_recipe: Callable[..., Recipe], out: Path, log: Log
):
    knobs = FEW | {"long_lengths": [1024], "repositories": [str(repository)], "importers": 1}
    for share, count in ((0.0, 0), (0.05, 1), (0.5, 2)):  # no more files than two are imported
        run(make_recipe(synthesize=knobs | {"long_share": share}), inputs, out, log)
        sources = [line.get("source") for line in read_jsonl(out / "sft.jsonl")]
        assert sources.count("long-context") == count
    with pytest.raises(Exception, match="long_lengths asks a model"):
        make_recipe(synthesize={"long_lengths": [1024]})
    assert json.loads((out / "dropped.jsonl").read_text() or "null") is None
