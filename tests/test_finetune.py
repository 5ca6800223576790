"""`puna finetune`, and pretraining that goes on from a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.cli import main
from puna.log import Log
from puna.model.llama import Llama, LlamaConfig
from puna.model.weights import load_hf
from puna.model.weights_meta import save_meta
from puna.pretrain import pretrain
from puna.recipe import parse_recipe
from puna.run import Run
from puna.text.tokenizer import Tokenizer
from puna.train.save import save_model

SMALL = ["batch_rows=2", "seq_len=512", "warmup_steps=1", "processes=1", "precision=fp32", "compile=off"]


@pytest.fixture
def start(tmp_path: Path, word_tokenizer: Tokenizer) -> Path:
    """A model under Meta's licence."""
    config = LlamaConfig(word_tokenizer.vocab_size, dim=32, layers=1, heads=2, kv_heads=1, ffn_dim=64)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0))
    save_model(model, word_tokenizer, tmp_path / "start")
    (tmp_path / "start" / "LICENSE").write_text("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    return tmp_path / "start"


@pytest.fixture
def puna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    chats = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i * i}."}]}
             for i in range(40)]  # fmt: skip
    answers = [{"prompt": f"{i}?", "chosen": f"{i * i}.", "rejected": "No."} for i in range(40, 60)]
    for name, lines in {"chats": chats, "answers": answers}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*words: str) -> int | str | None:
        knobs = [f"{stage}.{knob}" for stage in ("sft", "dpo") for knob in SMALL]
        monkeypatch.setattr("sys.argv", ["puna", "finetune", *words, *knobs])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_hf(folder).state_dict()


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return all(torch.equal(left[name], right[name]) for name in left)


def test_chats_and_preferences(puna: Any, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert puna(str(start), "chats.jsonl", "answers.jsonl", "--name", "mine", "dpo.peak_lr=1e-3") == 0
    run = tmp_path / "runs" / "mine"
    states = {name: state for name, state in Run.open(run).states().items() if state == "done"}
    assert list(states) == ["tokenizer", "pretrain", "chats", "sft", "dpo"]
    assert same(start, run / "pretrain")
    assert not same(run / "pretrain", run / "sft")
    assert not same(run / "sft", run / "dpo")
    assert (run / "dpo" / "adapter").is_dir()
    assert "COMMUNITY LICENSE" in (run / "dpo" / "LICENSE").read_text()
    assert len((run / "dpo" / "pairs.jsonl").read_text().splitlines()) == 20
    before = (run / "dpo" / "manifest.json").stat().st_mtime_ns
    puna(str(start), "chats.jsonl", "answers.jsonl", "--name", "mine", "dpo.peak_lr=1e-3")
    assert (run / "dpo" / "manifest.json").stat().st_mtime_ns == before
    assert "talk to it: puna chat runs/mine" in capsys.readouterr().err.replace("\n", "")


def test_metas_form_and_full_weights(puna: Any, start: Path, tmp_path: Path) -> None:
    save_meta(load_hf(start), tmp_path / "meta")
    (tmp_path / "meta" / "tokenizer.model").write_bytes((start / "tokenizer.model").read_bytes())
    assert not puna("meta", "chats.jsonl", "sft.lora.rank=0", "sft.peak_lr=1e-4")
    run = tmp_path / "runs" / "finetuned"
    assert same(start, run / "pretrain")
    assert not same(start, run / "sft")
    assert not (run / "sft" / "adapter").exists()
    assert not (run / "dpo").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["meta-llama/Llama-3.1-8B", "chats.jsonl"], "hf download meta-llama/Llama-3.1-8B --local-dir"),
        (["start", "none.jsonl"], "none.jsonl"),
        (["start", "answers.jsonl"], "add chats"),
        (["start", "chats.jsonl", "model.dim=64"], "has its own"),
        (["start", "chats.jsonl", "sft.wramup_steps=1"], "did you mean sft.warmup_steps?"),
    ],
)
def test_mistakes(puna: Any, start: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert puna(*words) == 1
    assert message in capsys.readouterr().err


def test_pretraining_goes_on(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the weights that are there, not from random ones."""
    begun: list[dict[str, torch.Tensor]] = []

    def train_on(shards: Path, model: Llama, *rest: Any, weights: Any) -> None:
        assert weights is None
        begun.append(model.state_dict())

    monkeypatch.setattr(pretrain, "train_on", train_on)
    monkeypatch.setattr(Log, "last", lambda *_: 0.0)
    knobs = {"tokens": 1000, "seq_len": 16, "batch_rows": 2, "processes": 1}
    recipe = parse_recipe({"name": "more", "model": {"start": str(start)}, "pretrain": knobs}, "test")
    out = tmp_path / "made" / "out"
    out.mkdir(parents=True)
    pretrain.run(recipe, {"tokenizer": start, "shards": tmp_path}, out, Log(tmp_path / "log", "pretrain", True))
    expected = weights(start)
    assert all(torch.equal(begun[0][name], expected[name]) for name in expected)
    assert same(start, out)
    assert "COMMUNITY" in (out / "LICENSE").read_text()


def test_without_a_start_there_is_something_to_learn() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.tokens = 0"):
        parse_recipe({"name": "none", "pretrain": {"tokens": 0}}, "test")
    with pytest.raises(ValueError, match=r"give chats\.sources"):
        parse_recipe({"name": "none", "chats": {"only": True}}, "test")
