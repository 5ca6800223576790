"""The long-context stage on a model of some thousand weights: gates, restarts, and what needles.json tells."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import PRESETS, Llama
from puna.model.weights import load_hf
from puna.pretrain import extend, pretrain
from puna.recipe import Recipe, parse_recipe
from puna.run import BY_NAME, Run, only
from puna.text.tokenizer import Tokenizer
from puna.train.save import save_model

PRETRAIN = {
    "tokens": 128 * 4, "seq_len": 128, "batch_rows": 1, "mix": {"text": 1.0}, "max_epochs": 9, "warmup_steps": 0,
    "precision": "fp32", "compile": "off", "processes": 1,
}  # fmt: skip
EXTEND = {
    "lengths": [192, 256], "tokens": 512, "batch_tokens": 256, "peak_lr": 1e-3, "final_lr": 0.2, "needle_share": 0.5,
    "compile": "off",
    "needle_gate": 0.0, "short_gate": 9.0, "depths": 3, "haystacks": 2, "held_out_tokens": 1000,
    "anneal_tokens": 1024, "average": 2,
}  # fmt: skip


@pytest.fixture
def inputs(word_tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Path]:
    config = replace(PRESETS["1m"], vocab_size=word_tokenizer.vocab_size, dim=16, layers=1, heads=2, kv_heads=1)
    model = Llama(replace(config, ffn_dim=32)).init_weights(torch.Generator().manual_seed(0))
    save_model(model, word_tokenizer, tmp_path / "pretrain", chat=False)
    word_tokenizer.save(tmp_path / "tokenizer", chat=False)
    (tmp_path / "shards").mkdir()
    for part, length in {"text": 6000, "held_out": 1200}.items():
        tokens = np.random.default_rng(length).integers(97, 123, length)
        tokens[::90] = word_tokenizer.bos_id
        tokens.astype(np.uint16).tofile(tmp_path / "shards" / f"{part}.bin")
    shards = {"dtype": "uint16", "held_out": {"tokens": 1200}}
    (tmp_path / "shards" / "shards.json").write_text(json.dumps(shards))
    return {name: tmp_path / name for name in ("pretrain", "tokenizer", "shards")}


@pytest.fixture
def make_out(tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        for folder in ("out", "work"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        return tmp_path / name / "out"

    return make


def make_recipe(**changed: Any) -> Recipe:
    whole = parse_recipe({"name": "test", "pretrain": PRETRAIN, "extend": EXTEND | changed}, "test")
    return only(whole, BY_NAME["extend"].knobs)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in load_hf(folder, dtype=torch.float32).parameters()])


def test_stages_are_gone_through_in_order_and_told(inputs: dict[str, Path], make_out: Callable, tmp_path: Path):
    out = make_out("once")
    metrics = extend.run(make_recipe(), inputs, out, Log(tmp_path / "log", "extend", quiet=True))
    report = json.loads((out / "needles.json").read_text())
    told = [(each["name"], list(each["found"])) for each in report["examinations"]]
    every = ["128", "192", "256"]
    assert told == [(name, every) for name in ("before", "192-1", "256-1", "anneal")]
    assert all(len(counts) == 3 for each in report["examinations"] for counts in each["found"].values())
    assert metrics["extend.needles.256.after"]["n"] == 6
    assert metrics["extend.loss.short.after"]["value"] == round(report["examinations"][-1]["loss"], 4)
    assert metrics["extend.loss.short.after"]["value"] < metrics["extend.loss.short.before"]["value"]
    steps = [json.loads(line) for line in (tmp_path / "log" / "extend-anneal.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in steps] == pytest.approx([2e-4, 1.5e-4, 1e-4, 5e-5])
    steps = [json.loads(line) for line in (tmp_path / "log" / "extend-256-1.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in steps] == pytest.approx([1e-3, 2e-4])
    assert load_hf(out).config.max_seq_len == PRESETS["1m"].max_seq_len


@pytest.mark.parametrize("killed", ["192-1", "256-1", "anneal"])
def test_a_killed_stage_goes_on_where_it_was(
    inputs: dict[str, Path], make_out: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str
):
    log = Log(tmp_path / "log", "extend", quiet=True)
    extend.run(make_recipe(), inputs, make_out("once"), log)
    trained: list[str] = []

    def kill(*arguments: Any) -> None:
        name = arguments[-1].removeprefix("extending, ")
        trained.append(name)
        if trained.count(killed) == 1 and name == killed:
            raise InterruptedError
        pretrain.train_on(*arguments)

    monkeypatch.setattr(extend, "train_on", kill)
    with pytest.raises(InterruptedError):
        extend.run(make_recipe(), inputs, make_out("twice"), log)
    extend.run(make_recipe(), inputs, make_out("twice"), log)
    assert sorted(trained) == sorted(["192-1", "256-1", "anneal", killed])
    assert torch.equal(weights(tmp_path / "once" / "out"), weights(tmp_path / "twice" / "out"))


def test_a_failed_gate_stops_the_run_and_says_why(inputs: dict[str, Path], make_out: Callable, tmp_path: Path):
    log = Log(tmp_path / "log", "extend", quiet=True)
    with pytest.raises(
        PunaError, match=r"stage 1 of 2 \(192 tokens\) is not passed after 2 attempts: .*% of the"
    ) as it:
        extend.run(make_recipe(needle_gate=1.0, attempts=2), inputs, make_out("needle"), log)
    assert "missed ones lie at 0%, 50%, 100% of the text; raise extend.attempts" in str(it.value)
    assert not (tmp_path / "needle" / "out" / "needles.json").exists()
    told = json.loads((tmp_path / "needle" / "work" / "192-2" / "examination.json").read_text())
    assert list(told["found"]) == ["192"]  # the others do not matter then
    with pytest.raises(PunaError, match=r"the loss in rows of 128 tokens is \d.* and was \d.* \(short_gate 0.0%\)"):
        extend.run(make_recipe(short_gate=0.0, peak_lr=1.0), inputs, make_out("short"), log)
    with pytest.raises(PunaError, match=r"extend.lengths = \[128\] must begin above pretrain.seq_len = 128"):
        extend.run(make_recipe(lengths=[128]), inputs, make_out("lengths"), log)
    with pytest.raises(PunaError, match=r"lengths=\[256, 192\] must grow"):
        make_recipe(lengths=[256, 192])


def test_more_attempts_go_on_from_the_last(inputs: dict[str, Path], make_out: Callable, tmp_path: Path):
    log = Log(tmp_path / "log", "extend", quiet=True)
    for attempts in (1, 3):
        with pytest.raises(PunaError, match=f"after {attempts} attempts"):
            extend.run(make_recipe(needle_gate=1.0, attempts=attempts), inputs, make_out("more"), log)
    losses = [
        json.loads((tmp_path / "more" / "work" / f"192-{n}" / "examination.json").read_text())["loss"]
        for n in (1, 2, 3)
    ]
    assert losses == sorted(losses, reverse=True)
    recipe = parse_recipe({"name": "x", "extend": EXTEND}, "test")
    more = parse_recipe({"name": "x", "extend": EXTEND | {"attempts": 5}}, "test")
    assert Run(recipe, tmp_path / "x")._knobs["extend"] == Run(more, tmp_path / "x")._knobs["extend"]


def test_what_follows_gets_the_extended_model_where_the_recipe_asks_for_it(tmp_path: Path):
    plain, long = (Run(parse_recipe({"name": "x", "extend": {"lengths": n}}, "x"), tmp_path) for n in ([], [16_384]))
    for name in ("sft", "evals"):
        assert plain.needs(BY_NAME[name])["pretrain"] == "pretrain"
        assert long.needs(BY_NAME[name])["pretrain"] == "extend"
    assert long.needs(BY_NAME["extend"])["pretrain"] == "pretrain"
    assert plain.state(BY_NAME["extend"]) == "optional"
    assert long.state(BY_NAME["extend"]) == "missing"
