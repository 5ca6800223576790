"""Checkpoints: bit-exact round trips, agreement with transformers and Meta's code, and errors that say what
is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from puna.errors import PunaError
from puna.model.llama import PRESETS, Llama, LlamaConfig, RopeScaling
from puna.model.weights import load_hf, read_config, save_hf
from puna.model.weights_meta import config_from_params, config_to_params, load_meta, save_meta

TINY = LlamaConfig(vocab_size=96, dim=64, layers=2, heads=4, kv_heads=2, ffn_dim=96)
TOKENS: dict[str, Any] = {"bos_id": 90, "eos_ids": [91, 92], "pad_id": 93}


@pytest.fixture
def model() -> Llama:
    model = Llama(TINY).init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def saved(model: Llama, tmp_path: Path) -> Path:
    save_hf(model, TINY, tmp_path / "hf", **TOKENS)
    return tmp_path / "hf"


def rows() -> Tensor:
    return torch.randint(TINY.vocab_size, (2, 24), generator=torch.Generator().manual_seed(2))


def assert_same(found: Llama, wanted: Llama) -> None:
    assert found.config == wanted.config
    theirs = wanted.state_dict()
    assert found.state_dict().keys() == theirs.keys()
    for name, weight in found.named_parameters():
        assert weight.dtype == theirs[name].dtype
        assert weight.requires_grad
        assert torch.equal(weight, theirs[name]), name
    assert torch.equal(found(rows()), wanted(rows()))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- round trips --


def test_hf_one_file(model: Llama, saved: Path):
    assert set(contents(saved)) == {"config.json", "generation_config.json", "model.safetensors"}
    assert_same(load_hf(saved), model)
    assert read_config(saved) == TINY


def test_hf_shards(model: Llama, tmp_path: Path):
    save_hf(model, TINY, tmp_path, shard_bytes=60_000, **TOKENS)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3
    assert index["metadata"]["total_size"] == 4 * sum(weight.numel() for weight in model.parameters())
    assert all(sum(t.nbytes for t in load_file(tmp_path / name).values()) <= 60_000 for name in files)
    assert_same(load_hf(tmp_path), model)


def test_hf_in_another_precision(model: Llama, tmp_path: Path):
    save_hf(model.state_dict(), TINY, tmp_path, dtype=torch.bfloat16, **TOKENS)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    wide = load_hf(tmp_path, dtype=torch.float32)
    assert_same(load_hf(tmp_path), model.bfloat16())
    assert_same(wide, model.float())


def test_saving_again_replaces_what_was_there(model: Llama, tmp_path: Path):
    save_hf(model, TINY, tmp_path, shard_bytes=60_000, **TOKENS)
    mapped = load_hf(tmp_path)  # its tensors are the files', which saving must not pull from under it
    save_hf(mapped, TINY, tmp_path, **TOKENS)
    assert set(contents(tmp_path)) == {"config.json", "generation_config.json", "model.safetensors"}
    assert_same(load_hf(tmp_path), model)


@pytest.mark.parametrize("shards", [1, 2])
def test_meta(model: Llama, tmp_path: Path, shards: int):
    save_meta(model, tmp_path, shards)
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == shards
    assert_same(load_meta(tmp_path), model)


def test_hf_to_meta_to_hf(saved: Path, tmp_path: Path):
    save_meta(load_hf(saved), tmp_path / "meta", shards=2)
    save_hf(load_meta(tmp_path / "meta"), TINY, tmp_path / "back", **TOKENS)
    assert contents(tmp_path / "back") == contents(saved)


def test_two_saves_are_byte_identical(model: Llama, saved: Path, tmp_path: Path):
    save_hf(model.state_dict(), TINY, tmp_path / "again", **TOKENS)
    assert contents(tmp_path / "again") == contents(saved)
    save_meta(model, tmp_path / "meta", shards=2)
    save_meta(load_hf(saved), tmp_path / "meta_again", shards=2)
    assert contents(tmp_path / "meta_again") == contents(tmp_path / "meta")


@pytest.mark.parametrize("config", [*PRESETS.values(), replace(TINY, dim=56, ffn_dim=37, rope_scaling=None)])
def test_params_json_keeps_the_configuration(config: LlamaConfig, tmp_path: Path):
    # One layer of the configuration's widths would be enough for params.json, but no weights are better
    # still.
    assert config_from_params(config_to_params(config), tmp_path, config.max_seq_len) == config


@pytest.mark.parametrize(("name", "multiplier"), [("8b", 1.3), ("70b", 1.3), ("405b", 1.2)])
def test_params_json_has_metas_ffn_multipliers(name: str, multiplier: float):
    assert config_to_params(PRESETS[name])["ffn_dim_multiplier"] == multiplier


# -- against the references --


@pytest.mark.parametrize("shard_bytes", [5e9, 60_000])
@torch.no_grad()
def test_transformers_reads_ours(model: Llama, tmp_path: Path, shard_bytes: float):
    transformers = pytest.importorskip("transformers")
    save_hf(model, TINY, tmp_path, shard_bytes=shard_bytes, **TOKENS)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    wanted = theirs(rows()).logits
    assert (model(rows()) - wanted).norm() / wanted.norm() < 1e-5
    assert theirs.generation_config.eos_token_id == TOKENS["eos_ids"]

    prompt = rows()[:1, :6]
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    generated = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=[])
    assert torch.equal(tokens, generated)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
@torch.no_grad()
def test_reads_what_transformers_saved(tmp_path: Path, tied: bool, scaled: bool, shard_size: str):
    transformers = pytest.importorskip("transformers")
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131_072,
        rope_parameters={"rope_theta": 500_000.0, **(scaling if scaled else {"rope_type": "default"})},
        tie_word_embeddings=tied,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size=shard_size)
    model = load_hf(tmp_path)
    assert model.config.rope_scaling == (RopeScaling(factor=32.0) if scaled else None)
    assert model.config.norm_eps == 1e-6
    assert model.lm_head.weight.data_ptr() != model.embed_tokens.weight.data_ptr()
    positions = torch.arange(131_048, 131_072).expand(2, -1)
    wanted = theirs(rows(), position_ids=positions).logits
    assert (model(rows(), positions=positions) - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("theta", [500_000.0, 10_000.0])
def test_both_forms_of_rope_settings_are_read(saved: Path, theta: float):
    edit(saved / "config.json", rope_theta=theta)
    old = read_config(saved)
    config = json.loads((saved / "config.json").read_text())
    config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    (saved / "config.json").write_text(json.dumps(config))
    assert read_config(saved) == old == replace(TINY, rope_theta=theta)


def test_metas_code_merges_our_shards(model: Llama, meta: SimpleNamespace, tmp_path: Path):
    save_meta(model, tmp_path / "one")
    save_meta(model, tmp_path / "two", shards=2)
    shards = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "two").glob("*.pth"))]
    merged = meta.checkpoint.reshard_mp(shards, size=1, rank=0)
    whole = torch.load(tmp_path / "one" / "consolidated.00.pth", weights_only=True)
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)


@torch.no_grad()
def test_metas_model_reads_ours(model: Llama, meta: SimpleNamespace, tmp_path: Path):
    save_meta(model, tmp_path)
    params = json.loads((tmp_path / "params.json").read_text())
    theirs = meta.model.Transformer(meta.args.ModelArgs(max_batch_size=2, max_seq_len=24, **params))
    theirs.load_state_dict(torch.load(tmp_path / "consolidated.00.pth", weights_only=True), strict=True)
    wanted = theirs(rows(), 0)
    assert (model(rows()) - wanted).norm() / wanted.norm() < 1e-5


# -- errors --


def rewrite(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight \[64\] is missing"),
        (
            lambda t: t.update({"model.norm.bias": torch.zeros(3)}),
            r"model\.norm\.bias \[3\] in model\.safetensors is not part of the model",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(95, 64)}),
            r"lm_head\.weight is \[95, 64\] in model\.safetensors, the configuration asks for \[96, 64\]",
        ),
        (lambda t: t.clear(), r"is missing.*; and 16 more"),
    ],
)
def test_wrong_tensors_are_named(saved: Path, change: Callable[[dict[str, Tensor]], object], message: str):
    rewrite(saved / "model.safetensors", change)
    with pytest.raises(PunaError, match=message):
        load_hf(saved)


@pytest.mark.parametrize("size", [0, 5, 700, 100_000])
def test_truncated_safetensors_is_named(saved: Path, size: int):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(PunaError, match=r"model\.safetensors: truncated or not a safetensors file"):
        load_hf(saved)


@pytest.mark.parametrize("name", ["gone.safetensors", "../hf/model.safetensors"])
def test_index_may_only_name_files_beside_it(saved: Path, name: str):
    index = {"weight_map": {"lm_head.weight": name}}
    (saved / "model.safetensors").rename(saved / "elsewhere.safetensors")
    with pytest.raises(PunaError, match=r"neither model\.safetensors nor"):
        load_hf(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PunaError, match="not a file beside it"):
        load_hf(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "gemma"}, "architecture gemma"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"head_dim": 32}, "head_dim = 32: only 16"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method = 'gptq'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "has no 'low_freq_factor'"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads = 3"),
        ({"vocab_size": "many"}, "config.json: "),
    ],
)
def test_configurations_that_are_not_ours_are_refused(saved: Path, changes: dict[str, object], message: str):
    edit(saved / "config.json", **changes)
    with pytest.raises(PunaError, match=message) as caught:
        read_config(saved)
    assert str(saved / "config.json") in str(caught.value)


def test_missing_or_broken_json_is_named(saved: Path):
    for content, message in ((b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "not a JSON object")):
        (saved / "config.json").write_bytes(content)
        with pytest.raises(PunaError, match=rf"config\.json: {message}"):
            load_hf(saved)
    shutil.rmtree(saved)
    with pytest.raises(PunaError, match=r"config\.json: no such file"):
        load_hf(saved)


def test_a_model_that_does_not_fit_its_configuration_is_not_saved(model: Llama, tmp_path: Path):
    with pytest.raises(PunaError, match=r"lm_head\.weight is \[96, 64\], the configuration asks for \[97, 64\]"):
        save_hf(model, replace(TINY, vocab_size=97), tmp_path / "hf", **TOKENS)
    assert not (tmp_path / "hf").exists()


def test_meta_errors(model: Llama, tmp_path: Path):
    with pytest.raises(PunaError, match="shards = 3: must divide kv_heads = 2"):
        save_meta(model, tmp_path, shards=3)
    with pytest.raises(PunaError, match="can only say"):
        save_meta(Llama(replace(TINY, rope_scaling=RopeScaling(factor=32.0))), tmp_path)
    save_meta(model, tmp_path, shards=2)
    second = tmp_path / "consolidated.01.pth"

    shard = torch.load(second, weights_only=True)
    torch.save(shard | {"layers.1.attention.wo.weight": torch.zeros(64, 31)}, second)
    with pytest.raises(PunaError, match=r"wo\.weight is \[64, 31\] in consolidated\.01\.pth, .* \[64, 32\]"):
        load_meta(tmp_path)
    del shard["norm.weight"]
    torch.save(shard, second)
    with pytest.raises(PunaError, match=r"consolidated\.01\.pth .*: norm\.weight \[64\] is missing"):
        load_meta(tmp_path)
    torch.save(shard | {"output.weight": [1, 2]}, second)
    with pytest.raises(PunaError, match=r"consolidated\.01\.pth: not a dictionary of tensors"):
        load_meta(tmp_path)
    for size in (0, 9, 3000):
        second.write_bytes((tmp_path / "consolidated.00.pth").read_bytes()[:size])
        with pytest.raises(PunaError, match=r"consolidated\.01\.pth: truncated"):
            load_meta(tmp_path)
    second.unlink()
    with pytest.raises(PunaError, match=r"consolidated\.00\.pth, the configuration asks for \[96, 64\]"):
        load_meta(tmp_path)
    edit(tmp_path / "params.json", n_heads=None)
    with pytest.raises(PunaError, match=r"params\.json: "):
        load_meta(tmp_path)


class Unpickled:
    """Stands for code in a pickle."""


def test_a_pickle_with_code_is_refused(model: Llama, tmp_path: Path):
    save_meta(model, tmp_path)
    torch.save({"output.weight": Unpickled()}, tmp_path / "consolidated.00.pth")
    with pytest.raises(PunaError, match=r"consolidated\.00\.pth: .*not a file of tensors"):
        load_meta(tmp_path)
