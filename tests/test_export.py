"""Exports: each form can be read by whom it is for, licences and cards go along, the drift is what it says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.drift import drift, rows_held_out, rows_of_text
from puna.errors import PunaError
from puna.export import FORMS, export_model, is_chat_model
from puna.infer.engine import Engine, Sampling
from puna.model.fp8 import quantize
from puna.model.llama import Llama, LlamaConfig
from puna.model.weights import load_hf
from puna.posttrain.reward_model import RewardModel, Scorer, save_reward
from puna.text.chat import Chat, Message, render
from puna.text.tokenizer import Tokenizer
from puna.train.save import save_model

TEXT = "the llama's wool is warm and grey; " * 40
METAS = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=290, specials=16)


@pytest.fixture(scope="module")
def llama(tokenizer: Tokenizer) -> Llama:
    config = LlamaConfig(tokenizer.vocab_size, dim=64, layers=3, heads=4, kv_heads=2, ffn_dim=96)
    return Llama(config).init_weights(torch.Generator().manual_seed(1))


@pytest.fixture
def model(llama: Llama, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The last model of a run, which has a recipe."""
    run = tmp_path / "run"
    save_model(llama, tokenizer, run / "sft")
    (run / "recipe.toml").write_text('name = "run"\nlicense = "apache-2.0"\n')
    return run / "sft"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chat", [True, False])
def test_every_form_has_a_card_licences_and_the_right_kind(
    form: str, chat: bool, llama: Llama, tokenizer: Tokenizer, tmp_path: Path
):
    save_model(llama, tokenizer, tmp_path / "tuned", chat=chat)
    for name, text in (("LICENSE", METAS), ("USE_POLICY.md", "be good")):
        (tmp_path / "tuned" / name).write_text(text)
    out = tmp_path / "mine"
    (tmp_path / "text").write_text(TEXT)
    export_model(tmp_path / "tuned", out, form, "bf16", tmp_path / "text" if form == "fp8" else None)
    assert (out / "LICENSE").read_text() == METAS
    assert (out / "USE_POLICY.md").exists()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: llama3.1\n")
    assert "\n# Llama-mine\n" in card
    assert ("A chat model" in card) is chat
    if form == "gguf":
        gguf: Any = pytest.importorskip("gguf", reason="needs the test dependency gguf")
        fields = gguf.GGUFReader(out / "Llama-mine-bf16.gguf").fields
        assert ("tokenizer.chat_template" in fields) is chat
    else:
        assert is_chat_model(out) is chat
    assert not out.with_name("mine.partial").exists()


def test_a_model_of_a_run_has_the_licence_of_the_recipe(model: Path, tmp_path: Path):
    export_model(model, tmp_path / "out", "hf", "fp32")
    assert "license: apache-2.0\n" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "README.md").write_text("by hand")
    export_model(tmp_path / "out", tmp_path / "again", "hf", "fp32")
    assert (tmp_path / "again" / "README.md").read_text() == "by hand"


def test_fp8_reports_the_drift(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "text").write_text(TEXT)
    figures = export_model(model, tmp_path / "fp8", "fp8", "bf16", tmp_path / "text")
    assert json.loads((tmp_path / "fp8" / "drift.json").read_text()) == figures
    assert 1e-4 < figures["logit_error"] < 0.1
    assert figures["perplexity_after"] == pytest.approx(figures["perplexity_before"], rel=0.02)
    assert f"{figures['perplexity_after']:.4g}" in (tmp_path / "fp8" / "README.md").read_text()
    with pytest.raises(PunaError, match="is in FP8"):
        export_model(tmp_path / "fp8", tmp_path / "x", "gguf", "bf16")
    monkeypatch.setattr("puna.drift.LENGTH", 8)  # without text it writes its own: here eight times four tokens
    assert export_model(model, tmp_path / "own", "fp8", "bf16")["tokens"] == 28


def test_the_drift_of_a_model_from_itself_is_none_and_perplexity_is_that_of_torch(llama: Llama, tokenizer: Tokenizer):
    rows = torch.randint(tokenizer.vocab_size, (3, 20))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(llama(rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    figures = drift(llama, llama, rows)
    perplexity = pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert figures == {
        **{"tokens": 57, "logit_error": 0, "largest_logit_error": 0, "kl": 0, "same_choice": 1},
        **{"perplexity_before": perplexity, "perplexity_after": perplexity},
    }


def test_the_drift_is_measured_as_it_is_described(model: Path, llama: Llama):
    rows = torch.randint(llama.config.vocab_size, (2, 30))
    other = quantize(load_hf(model, torch.float32))
    figures = drift(llama, other, rows)
    with torch.no_grad():
        before, after = llama(rows)[:, :-1].flatten(0, 1), other(rows)[:, :-1].flatten(0, 1)
    spread = before.std(-1, correction=0).square().mean().sqrt()
    assert figures["logit_error"] == pytest.approx(((after - before).square().mean().sqrt() / spread).item(), rel=1e-3)
    assert figures["largest_logit_error"] == pytest.approx((after - before).abs().max().item())
    p, q = torch.distributions.Categorical(logits=before), torch.distributions.Categorical(logits=after)
    assert figures["kl"] == pytest.approx(torch.distributions.kl_divergence(p, q).mean().item(), rel=1e-3)


def test_rows_come_from_the_text_or_from_what_was_held_out(tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "text").write_text(TEXT)
    rows = rows_of_text(tmp_path / "text", tokenizer)
    assert (rows[:, 0] == tokenizer.bos_id).all()
    assert tokenizer.decode(rows[0, 1:].tolist()) == TEXT[: len(tokenizer.decode(rows[0, 1:].tolist()))]
    tokens = torch.arange(20_000, dtype=torch.int32) % 250
    tokens.numpy().astype("uint16").tofile(tmp_path / "held_out.bin")
    (tmp_path / "shards.json").write_text('{"dtype": "uint16"}')
    rows = rows_held_out(tmp_path, tokenizer)
    assert rows.shape == (16, 512)
    assert rows[0, 1:].tolist() == tokens[:511].tolist()
    assert rows[-1, 1:].tolist() == tokens[-511:].tolist()


def test_a_reward_model_scores_what_both_models_answer(
    model: Path, llama: Llama, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reward = RewardModel.from_language_model(llama)
    torch.nn.init.normal_(reward.lm_head.weight)
    monkeypatch.setattr("puna.drift.LONGEST", 16)
    save_reward(reward, tokenizer, tmp_path / "reward", torch.float32)
    lines = [
        {"messages": [{"role": "user", "content": f"llama {i}"}, {"role": "assistant", "content": "x"}]}
        for i in range(12)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "text").write_text(TEXT)
    options = tmp_path / "text", tmp_path / "reward", tmp_path / "prompts.jsonl"
    figures = export_model(model, tmp_path / "fp8", "fp8", "bf16", *options)
    assert figures["responses"] == 12
    assert figures["reward_spread_before"] > 0
    assert 0 <= figures["reward_distance"] < 1
    assert "A reward model gives 12 answers" in (tmp_path / "fp8" / "README.md").read_text()
    # the scores are those of the answers that each model gives to the prompts, its own answers left out
    ids = [render(Chat([Message("user", f"llama {i}")]), tokenizer, generation_prompt=True).ids for i in range(12)]
    answers = Engine(load_hf(model, torch.float32), tokenizer).generate(ids, Sampling(16, 1.0))
    scores = Scorer(reward, tokenizer).score_responses(list(zip(ids, answers)))
    assert figures["reward_before"] == pytest.approx(sum(score for (score,) in scores) / 12, rel=1e-3)
    with pytest.raises(PunaError, match="give both or neither"):
        export_model(model, tmp_path / "x", "fp8", "bf16", None, tmp_path / "reward")
    other = Tokenizer.train(["quick brown foxes jump over a lazy dog " * 9], vocab_size=290, specials=16)
    save_reward(reward, other, tmp_path / "reward", torch.float32)
    with pytest.raises(PunaError, match="another tokenizer"):
        export_model(model, tmp_path / "x", "fp8", "bf16", *options)


@pytest.mark.parametrize(
    ("form", "dtype", "text", "said"),
    [
        ("onnx", "bf16", None, "--to onnx is not known; use hf, meta, gguf, fp8"),
        ("hf", "q8_0", None, "--dtype q8_0 cannot be had with --to hf; use bf16, fp16, fp32"),
        ("fp8", "fp32", None, "use bf16, fp16"),
        ("hf", "bf16", Path("x"), "--to hf has none"),
        ("fp8", "bf16", Path("nowhere"), "--text nowhere: no such file"),
    ],
)
def test_errors_say_what_to_do(model: Path, tmp_path: Path, form: str, dtype: str, text: Path | None, said: str):
    with pytest.raises(PunaError, match=said):
        export_model(model, tmp_path / "out", form, dtype, text)
    assert not (tmp_path / "out").exists()
