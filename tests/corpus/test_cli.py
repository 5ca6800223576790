"""`puna corpus`: from documents to labels to a classifier, as a user types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from puna.cli import app
from puna.errors import PunaError
from puna.log import console


def run(*words: object) -> str:
    with console.capture() as captured:
        result = CliRunner().invoke(app, ["corpus", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return captured.get()


def records(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    rows = [{"label": n % 2, "text": f"{'river history' if n % 2 else 'casino bonus'} number {n}"} for n in range(100)]
    return records(tmp_path / "labels.jsonl", *rows)


def test_train_and_test_on_labels(labels: Path, tmp_path: Path):
    told = run("train", tmp_path / "m.bin", "--labels", labels, "--held-out", 0.2, "--epochs", 40)
    assert "trained on 80 examples" in told
    assert "area under the curve 1.000" in told
    assert "20 examples" in told
    assert "100 examples" in run("test", tmp_path / "m.bin", labels)


def test_train_on_positives_against_the_corpus(tmp_path: Path):
    good = records(tmp_path / "good.jsonl", *({"text": f"river history {n}"} for n in range(30)))
    bad = records(tmp_path / "bad.jsonl", *({"text": f"casino bonus {n}"} for n in range(90)))
    told = run("train", tmp_path / "m.bin", "--positives", good, "--negatives", bad, "--held-out", 0)
    assert told.strip().endswith("m.bin: trained on 60 examples")
    with pytest.raises(PunaError, match="either --labels, or --positives and --negatives"):
        run("train", tmp_path / "m.bin", "--positives", good)


def test_train_a_transformer_on_topics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from puna.corpus import scorer
    from puna.text.tokenizer import Tokenizer

    monkeypatch.setattr(scorer, "count_processes", lambda options: 1)
    rows = [{"label": ["art", "law", "pets"][n % 3], "text": f"{'abc'[n % 3] * 3} number {n}"} for n in range(60)]
    Tokenizer.train([row["text"] for row in rows], 300, 16).save(tmp_path / "tokenizer")
    labels, out = records(tmp_path / "labels.jsonl", *rows), tmp_path / "scorer"
    options = ("--kind", "transformer", "--preset", "1m", "--start", tmp_path / "tokenizer", "--seq-len", 32)
    more = ("--batch-rows", 2, "--epochs", 2, "--learning-rate", 3e-3, "--held-out", 0.5)
    told = run("train", out, "--labels", labels, *options, *more)
    assert "trained on 30 examples" in told
    assert "accuracy" in told
    assert all(topic in told for topic in ("art", "law", "pets"))
    with pytest.raises(PunaError, match="scorer exists; name another directory"):
        run("train", out, "--labels", labels, *options)
    with pytest.raises(PunaError, match="needs --start"):
        run("train", tmp_path / "x", "--labels", labels, "--kind", "transformer")


def test_label_says_what_is_wrong(labels: Path, tmp_path: Path):
    with pytest.raises(PunaError, match="no such environment variable"):
        run("label", labels, tmp_path / "out.jsonl", "--model", "m", "--key-env", "PUNA_TEST_NO_SUCH_KEY")
    with pytest.raises(PunaError, match="documents in a row failed, the last with: ConnectError"):
        run("label", labels, tmp_path / "out.jsonl", "--model", "m", "--url", "http://127.0.0.1:9/v1", "--tries", 1)


def test_label_tells_tokens_and_cost(labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from puna.corpus import label

    def answer(documents, task, endpoint, out, log, characters):
        names = [text for _, text in documents]
        assert (len(names), endpoint.key, endpoint.model, characters) == (7, "secret", "m", 8000)
        return label.Account(labelled=7, tokens_in=2_000_000, tokens_out=1_000_000, failures=["d1: [too] long"])

    monkeypatch.setattr(label, "label", answer)
    monkeypatch.setenv("PUNA_TEST_KEY", "secret")
    options = ("--key-env", "PUNA_TEST_KEY", "--price-in", 0.5, "--price-out", 2, "--limit", 7)
    told = run("label", labels, tmp_path / "out.jsonl", "--model", "m", *options)
    assert "failed: d1: [too] long" in told
    assert "7 labelled, 0 were already" in told
    assert "2,000,000 tokens in, 1,000,000 out, cost 3.00" in told
