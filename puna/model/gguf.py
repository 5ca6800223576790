"""Llama checkpoints in GGUF, the one-file form that llama.cpp runs (ggml's docs/gguf.md, version 3).

Three things differ from a Hugging Face directory. llama.cpp rotates neighbouring pairs, as Meta does, so the rows of
the q and k matrices are reordered. Rope scaling is a tensor, `rope_freqs.weight`: what the frequency of each rotary
pair is divided by. And the tokenizer, with its merges and its chat template, lies in the same file.

Tensors are converted and written one after another, so that a model that is mapped from its files is never whole in
memory. Saving the same model twice writes the same bytes.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from puna.errors import PunaError
from puna.model.llama import Llama, LlamaConfig, rope_frequencies
from puna.model.weights_meta import interleaved
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import merges_from_ranks, spell

MODULES = {
    "embed_tokens": "token_embd",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "norm": "output_norm",
    "lm_head": "output",
}
"""Our module -> llama.cpp's."""

ALIGNMENT = 32  # bytes, of each tensor in the file
BLOCK = 32  # weights that share a scale in Q8_0
NORMAL, CONTROL = 1, 3  # kinds of token


class Form(NamedTuple):
    """How a matrix is stored: ggml's number for it, the number for a file of such, bytes for 32 weights, encoder."""

    number: int
    file_type: int
    block_bytes: int
    encode: Callable[[Tensor], bytes]


def q8_0(weights: Tensor) -> bytes:
    """Blocks of 32 weights of a row: the largest magnitude / 127 as fp16, then 32 int8, rounded half away from 0."""
    blocks = weights.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True) / 127
    scaled = blocks * torch.where(scales > 0, 1 / scales, 0)
    rounded = (scaled.abs() + 0.5).floor() * scaled.sign()
    packed = torch.cat([scales.half().view(torch.uint8), rounded.to(torch.int8).view(torch.uint8)], dim=1)
    return packed.numpy().tobytes()


def _plain(dtype: torch.dtype) -> Callable[[Tensor], bytes]:
    return lambda weights: weights.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


FORMS = {
    "fp32": Form(0, 0, 128, _plain(torch.float32)),
    "fp16": Form(1, 1, 64, _plain(torch.float16)),
    "bf16": Form(30, 32, 64, _plain(torch.bfloat16)),
    "q8_0": Form(8, 7, 34, q8_0),
}


def save_gguf(
    model: Llama, tokenizer: Tokenizer, path: str | Path, form: str, name: str, chat_template: str | None = None
) -> None:
    """Write a model as one GGUF file.

    `form` is that of the matrices: fp32, fp16, bf16 or q8_0; norms stay fp32, and in q8_0 a matrix whose rows are no
    multiple of 32 stays fp16, as in llama.cpp. With a `chat_template` the model is a chat model, whose turn ends in
    eot_id; without, a base model, which stops at end_of_text.
    """
    if model.config.vocab_size != tokenizer.vocab_size:
        raise PunaError(f"the model has {model.config.vocab_size} tokens, its tokenizer {tokenizer.vocab_size}")
    matrix, vector = FORMS[form], FORMS["fp32"]
    tensors: list[tuple[str, Tensor, Form]] = []
    for key, tensor in model.state_dict().items():
        ragged = form == "q8_0" and tensor.shape[-1] % BLOCK
        tensors.append((_name(key), tensor, vector if tensor.ndim == 1 else FORMS["fp16"] if ragged else matrix))
    if model.config.rope_scaling is not None:
        tensors.append(("rope_freqs.weight", divisors(model.config), vector))
    metadata = _metadata(model.config, name, matrix) | _vocabulary(tokenizer, chat_template)

    with Path(path).open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for title, tensor, stored in tensors:
            shape = tensor.shape[::-1]  # ggml counts dimensions from the innermost
            numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, stored.number, offset)
            file.write(_string(title) + numbers)
            offset += _aligned(tensor.numel() * stored.block_bytes // BLOCK)
        _pad(file)
        for title, tensor, stored in tensors:
            if "attn_q." in title or "attn_k." in title:
                tensor = interleaved(tensor, model.config.head_dim)
            file.write(stored.encode(tensor.detach().cpu()))
            _pad(file)


def divisors(config: LlamaConfig) -> Tensor:
    """What rope scaling divides the frequency of each rotary pair by, [D / 2] fp32."""
    return rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)


def _name(key: str) -> str:
    """layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    module = key.removesuffix(".weight")
    if module.startswith("layers."):
        _, layer, module = module.split(".", 2)
        return f"blk.{layer}.{MODULES[module]}.weight"
    return f"{MODULES[module]}.weight"


def _metadata(config: LlamaConfig, name: str, matrix: Form) -> dict[str, Any]:
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.file_type": matrix.file_type,
        "general.quantization_version": 2,
        "llama.vocab_size": config.vocab_size,
        "llama.block_count": config.layers,
        "llama.context_length": config.max_seq_len,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
    }


def _vocabulary(tokenizer: Tokenizer, chat_template: str | None) -> dict[str, Any]:
    """The tokenizer; `llama-bpe` is llama.cpp's name for Llama 3's split pattern and its whole tokens first."""
    ordinary = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    merges = merges_from_ranks(tokenizer.ranks)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*map(spell, ordinary), *tokenizer.special],
        "tokenizer.ggml.token_type": [NORMAL] * len(ordinary) + [CONTROL] * len(tokenizer.special),
        "tokenizer.ggml.merges": [f"{spell(left)} {spell(right)}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eot_id if chat_template else tokenizer.eos_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.ggml.add_bos_token": True,
    }
    return metadata | ({"tokenizer.chat_template": chat_template} if chat_template else {})


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value of the metadata after the number of its type; an array after those of its items and their count."""
    if not isinstance(value, list):
        number, data = _scalar(value)
        return struct.pack("<I", number) + data
    number = 5 if isinstance(value[0], int) else 8  # llama.cpp wants the numbers of an array signed
    return struct.pack("<IIQ", 9, number, len(value)) + b"".join(_scalar(item)[1] for item in value)


def _scalar(value: str | bool | int | float) -> tuple[int, bytes]:
    match value:
        case str():
            return 8, _string(value)
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_aligned(file.tell()) - file.tell()))
