"""GGUF files, read back with the `gguf` package: tensors, metadata, tokenizer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.errors import PunaError
from puna.model.gguf import FORMS, divisors, q8_0, save_gguf
from puna.model.llama import PRESETS, Llama, LlamaConfig
from puna.text.tokenizer import Tokenizer

gguf: Any = pytest.importorskip("gguf", reason="needs the test dependency gguf")

TEXTS = [Path(str(gguf.__file__)).with_name("constants.py").read_text(), "«оно» 日本語の文章です 🦙"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=352, specials=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    # ffn_dim is no multiple of 32: in Q8_0 the rows of down_proj cannot be cut into blocks
    config = LlamaConfig(tokenizer.vocab_size, dim=64, layers=2, heads=4, kv_heads=2, ffn_dim=80, max_seq_len=4096)
    return Llama(config).init_weights(torch.Generator().manual_seed(1))


def write(model: Llama, tokenizer: Tokenizer, folder: Path, form: str, template: str | None = None) -> Any:
    save_gguf(model, tokenizer, folder / f"{form}.gguf", form, "a llama", template)
    return gguf.GGUFReader(folder / f"{form}.gguf")


def tensors(reader: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in reader.tensors}


def fields(reader: Any) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_comes_back(model: Llama, tokenizer: Tokenizer, tmp_path: Path, form: str):
    found = tensors(write(model, tokenizer, tmp_path, form))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.layers)
    assert len(found) == len(model.state_dict()) + 1  # rope_freqs
    kinds = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
    for key, weight in model.state_dict().items():
        hf = key if key.startswith("lm_head") else f"model.{key}"
        tensor = found[names.get_name(hf, try_suffixes=(".weight",))]
        wanted = weight.numpy()
        for matrix, heads in (("q_proj", 4), ("k_proj", 2)):
            if matrix in key:  # as convert_hf_to_gguf.py reorders them
                wanted = wanted.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(wanted.shape)
        kind = "F32" if weight.ndim == 1 else "F16" if form == "q8_0" and "down_proj" in key else kinds[form]
        assert tensor.tensor_type.name == kind
        encoded = gguf.quants.quantize(wanted, tensor.tensor_type)
        data = tensor.data.view(np.uint16) if kind == "F16" else tensor.data
        assert np.array_equal(data, encoded.view(data.dtype)), key


def test_rounding_to_eight_bits_is_that_of_the_reference():
    rows = torch.randn(64, 96) * torch.logspace(-8, 4, 64)[:, None]
    rows[3] = 0
    rows[4, :32] = torch.arange(32) + 0.5  # ties
    rows[4, 31] = 127
    assert q8_0(rows) == gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0).tobytes()


def test_the_metadata_describe_the_model(model: Llama, tokenizer: Tokenizer, tmp_path: Path):
    found = fields(write(model, tokenizer, tmp_path, "bf16"))
    keys = gguf.Keys
    wanted = {
        keys.General.ARCHITECTURE: "llama",
        keys.General.NAME: "a llama",
        keys.General.FILE_TYPE: gguf.LlamaFileType.MOSTLY_BF16,
        keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        keys.LLM.BLOCK_COUNT.format(arch="llama"): 2,
        keys.LLM.CONTEXT_LENGTH.format(arch="llama"): 4096,
        keys.LLM.EMBEDDING_LENGTH.format(arch="llama"): 64,
        keys.LLM.FEED_FORWARD_LENGTH.format(arch="llama"): 80,
        keys.LLM.VOCAB_SIZE.format(arch="llama"): 352,
        keys.Attention.HEAD_COUNT.format(arch="llama"): 4,
        keys.Attention.HEAD_COUNT_KV.format(arch="llama"): 2,
        keys.Attention.LAYERNORM_RMS_EPS.format(arch="llama"): pytest.approx(1e-5),
        keys.Rope.FREQ_BASE.format(arch="llama"): 500_000.0,
        keys.Rope.DIMENSION_COUNT.format(arch="llama"): 16,
    }
    assert {key: found[key] for key in wanted} == wanted


def test_the_vocabulary_is_whole(model: Llama, tokenizer: Tokenizer, tmp_path: Path):
    keys = gguf.Keys.Tokenizer
    base = fields(write(model, tokenizer, tmp_path, "fp32"))
    chat = fields(write(model, tokenizer, tmp_path, "fp32", "{{ messages }} 🦙"))
    assert (chat[keys.MODEL], chat[keys.PRE], chat[keys.CHAT_TEMPLATE]) == ("gpt2", "llama-bpe", "{{ messages }} 🦙")
    assert keys.CHAT_TEMPLATE not in base
    assert (base[keys.EOS_ID], chat[keys.EOS_ID]) == (tokenizer.eos_id, tokenizer.eot_id)
    assert (chat[keys.BOS_ID], chat[keys.PAD_ID], chat[keys.ADD_BOS]) == (tokenizer.bos_id, tokenizer.pad_id, True)
    tokenizer.save(tmp_path / "hf")
    transformers = pytest.importorskip("transformers", reason="needs the test dependency transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert chat[keys.LIST] == theirs.convert_ids_to_tokens(range(352))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    assert chat[keys.TOKEN_TYPE] == [control if i in theirs.all_special_ids or i >= 336 else normal for i in range(352)]

    # llama.cpp refuses an array of unsigned numbers here
    kinds = gguf.GGUFReader(tmp_path / "fp32.gguf").fields[keys.TOKEN_TYPE].types
    assert kinds == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]
    places = {token: place for place, token in enumerate(chat[keys.LIST])}
    joined = [places["".join(merge.split(" "))] for merge in chat[keys.MERGES]]
    assert joined == sorted(joined)
    assert set(joined) == set(range(256, 336))


def test_rope_scaling_is_a_tensor(model: Llama, tokenizer: Tokenizer, tmp_path: Path):
    found = divisors(PRESETS["8b"])
    assert (found[0], found[28], found[63]) == (1, 1, 8)  # kept, kept, stretched; between, the published frequencies:
    plain = 500_000.0 ** -(torch.arange(64).double() / 64)
    assert (plain / found)[[29, 32, 34]].tolist() == pytest.approx([2.166570764e-3, 5.24846161e-4, 1.785078128e-4])
    tensor = tensors(write(model, tokenizer, tmp_path, "q8_0"))["rope_freqs.weight"]
    assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(tensor.data, divisors(model.config).numpy())
    unscaled = Llama(replace(model.config, rope_scaling=None)).init_weights()
    assert "rope_freqs.weight" not in tensors(write(unscaled, tokenizer, tmp_path, "fp16"))


def test_the_same_model_gives_the_same_bytes(model: Llama, tokenizer: Tokenizer, tmp_path: Path):
    for name in ("a", "b"):
        save_gguf(model, tokenizer, tmp_path / name, "q8_0", "x")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tokenizer_of_another_model_is_refused(model: Llama, tmp_path: Path):
    with pytest.raises(PunaError, match="352 tokens, its tokenizer 300"):
        save_gguf(model, Tokenizer.train(TEXTS, 300, 16), tmp_path / "x", "fp16", "x")
