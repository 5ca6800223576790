"""The shards stage: what is in the token files is what was in the documents."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.corpus import corpus, shard
from puna.recipe import parse_recipe
from puna.run import work_folder
from puna.text.tokenizer import Tokenizer

from .conftest import page, prose


def recipe(source: Path | str, seed: int = 0) -> Any:
    knobs = {"source": str(source), "engine": "inline", "held_out": 0.2}
    return parse_recipe({"name": "test", "seed": seed, "corpus": knobs}, "test")


@pytest.fixture
def inputs(site, tmp_path: Path, log) -> dict[str, Path]:
    """A corpus of 30 documents, with the text of pages that are not ASCII, and a tokenizer for it."""
    pages = {f"{part}/{n}.html": page(f"Café {prose(n)} naïve") for n, part in enumerate(["math", "code"] * 15)}
    root = site(pages)
    artifacts = {name: tmp_path / name for name in ("corpus", "tokenizer")}
    artifacts["corpus"].mkdir()
    corpus.run(recipe(root), {}, artifacts["corpus"], log)
    Tokenizer.train([prose(n) for n in range(20)], 400, 16).save(artifacts["tokenizer"])
    return artifacts


def make(inputs: dict[str, Path], out: Path, log, seed: int = 0) -> dict[str, Any]:
    out.mkdir()
    return shard.run(recipe("unused", seed), inputs, out, log)


def cut(out: Path, name: str) -> list[list[int]]:
    """The documents of a token file."""
    dtype = json.loads((out / "shards.json").read_text())["dtype"]
    tokens = np.fromfile(out / f"{name}.bin", dtype)
    index = np.load(out / f"{name}.idx.npy")
    assert index.dtype == np.int64
    assert index[0] == 0
    assert index[-1] == len(tokens)
    return [tokens[start:end].tolist() for start, end in pairwise(index)]


def test_token_files_hold_the_documents(inputs: dict[str, Path], tmp_path: Path, log) -> None:
    out = tmp_path / "out"
    metrics = make(inputs, out, log)
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    summary = json.loads((out / "shards.json").read_text())
    assert summary["dtype"] == "uint16"
    characters = tokens = 0
    for name in ("general", "math", "code", "multilingual", "held_out"):
        path = inputs["corpus"] / (f"documents/{name}.parquet" if name != "held_out" else "held_out.parquet")
        texts = pq.read_table(path)["text"].to_pylist()
        pieces = cut(out, name)
        for ids in pieces:
            assert ids[0] == tokenizer.bos_id
            assert ids[-1] == tokenizer.eos_id
        decoded = [tokenizer.decode(ids[1:-1]) for ids in pieces]
        assert sorted(decoded) == sorted(texts)
        if name == "held_out":
            assert decoded == texts, "in the order of the table"
            assert np.load(out / "held_out.bytes.npy").tolist() == [len(text.encode()) for text in texts]
        counts = summary["parts"].get(name) or summary[name]
        assert counts == {
            "documents": len(texts),
            "tokens": sum(map(len, pieces)),
            "characters": sum(map(len, texts)),
            "bytes": sum(len(text.encode()) for text in texts),
        }
        assert metrics[f"shards.tokens.{name}"]["value"] == counts["tokens"]
        characters += counts["characters"]
        tokens += counts["tokens"] - 2 * len(texts)
    assert summary["characters_per_token"] == {"en": pytest.approx(characters / tokens, abs=1e-3)}


def test_documents_are_shuffled_by_the_seed(inputs: dict[str, Path], tmp_path: Path, log) -> None:
    outs = [tmp_path / name for name in ("one", "again", "other")]
    for out, seed in zip(outs, (0, 0, 1)):
        make(inputs, out, log, seed)
    one, again, other = (cut(out, "math") for out in outs)
    assert one == again != other
    assert sorted(one) == sorted(other)
    assert [path.read_bytes() for path in sorted(outs[0].iterdir())] == [
        path.read_bytes() for path in sorted(outs[1].iterdir())
    ]
    assert cut(outs[0], "held_out") == cut(outs[2], "held_out")


def test_the_size_of_buckets_does_not_change_the_order(
    inputs: dict[str, Path], tmp_path: Path, log, monkeypatch
) -> None:
    make(inputs, tmp_path / "one", log)
    monkeypatch.setattr(shard, "BUCKET", 2000)
    monkeypatch.setattr(shard, "BUFFER", 3000)
    monkeypatch.setattr(shard, "BATCH", 4)
    make(inputs, tmp_path / "two", log)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert not (work_folder(tmp_path / "two") / "math").exists()


def test_documents_of_a_group_lie_together(inputs: dict[str, Path], tmp_path: Path, log) -> None:
    path = inputs["corpus"] / "documents" / "math.parquet"
    table = pq.read_table(path)
    languages = ["de" if n % 3 else "en" for n in range(table.num_rows)]
    table = table.set_column(table.schema.get_field_index("language"), "language", pa.array(languages))
    pq.write_table(table, path)
    out = tmp_path / "out"
    make(inputs, out, log)
    ranges = json.loads((out / "shards.json").read_text())["groups"]["math"]
    assert [entry["language"] for entry in ranges] == ["de", "en"]
    assert ranges[0]["start"] == 0
    assert ranges[1]["start"] == ranges[0]["tokens"]
    assert sum(entry["tokens"] for entry in ranges) == np.load(out / "math.idx.npy")[-1]
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    first = [tokenizer.decode(ids[1:-1]) for ids in cut(out, "math")[: languages.count("de")]]
    assert sorted(first) == sorted(t for t, code in zip(table["text"].to_pylist(), languages) if code == "de")


def test_a_large_vocabulary_takes_four_bytes(inputs: dict[str, Path], tmp_path: Path, log, monkeypatch) -> None:
    class Large:
        vocab_size, bos_id, eos_id = 128_256, 128_000, 128_001

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [[70_000, len(text)] for text in texts]

    monkeypatch.setattr(shard.Tokenizer, "load", lambda path: Large())
    make(inputs, tmp_path / "out", log)
    assert json.loads((tmp_path / "out" / "shards.json").read_text())["dtype"] == "uint32"
    assert cut(tmp_path / "out", "math")[0][:2] == [128_000, 70_000]
