"""Llama checkpoints in and out, in Meta's form: params.json and one consolidated.NN.pth per model-parallel
shard.

Names differ from ours by the table below, and the rows of the q and k matrices stand in another order: Meta
rotates neighbouring pairs, we and Hugging Face pairs that are half a head apart.
"""

import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.errors import PunaError
from puna.model.llama import Llama, LlamaConfig, RopeScaling
from puna.model.weights import (
    Shape,
    check_tensors,
    empty_model,
    mapped_copy,
    read_json,
    remove_files,
    with_state,
    write_json,
)

# Our module -> Meta's, and the dimension along which model parallelism splits it (None: each shard has all).
META_MODULES: dict[str, tuple[str, int | None]] = {
    "embed_tokens": ("tok_embeddings", 0),
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "norm": ("norm", None),
    "lm_head": ("output", 0),
}


def load_meta(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    max_seq_len: int = 131_072,
) -> Llama:
    """Load Meta's form from any number of model-parallel shards; params.json does not tell `max_seq_len`."""
    directory = Path(directory)
    config = read_meta_config(directory, max_seq_len)
    model = empty_model(config)
    files = sorted(directory.glob("consolidated.*.pth"))
    if not files:
        raise PunaError(f"{directory}: no consolidated.*.pth")
    shards = [_load_pth(file) for file in files]
    expected: dict[str, Shape] = {}
    for name, tensor in model.state_dict().items():
        meta, split = _meta_name(name)
        expected[meta] = tuple(s // len(files) if dim == split else s for dim, s in enumerate(tensor.shape))
    for file, shard in zip(files, shards):
        check_tensors({key: (tuple(tensor.shape), file) for key, tensor in shard.items()}, expected, file)

    state: dict[str, Tensor] = {}
    for name in model.state_dict():
        meta, split = _meta_name(name)
        parts = [shard[meta] for shard in shards]
        tensor = parts[0] if split is None or len(parts) == 1 else torch.cat(parts, dim=split)
        if "q_proj" in name or "k_proj" in name:
            tensor = _half_split(tensor, config.head_dim)
        state[name] = tensor.to(device, dtype)
    return with_state(model, state, device)


def save_meta(model: Llama, directory: str | Path, shards: int = 1) -> None:
    """Write Meta's form, split for model parallelism over `shards` processes."""
    config = model.config
    for field in ("kv_heads", "ffn_dim", "vocab_size"):
        if shards < 1 or getattr(config, field) % shards:
            raise PunaError(f"shards = {shards}: must divide {field} = {getattr(config, field)}")
    params = config_to_params(config)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remove_files(directory, "params.json", "consolidated.*.pth")
    for rank in range(shards):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:  # a shard may be larger than memory
            shard: dict[str, Tensor] = {}
            for name, tensor in model.state_dict().items():
                meta, split = _meta_name(name)
                if "q_proj" in name or "k_proj" in name:
                    tensor = interleaved(tensor, config.head_dim)
                part = tensor if split is None else tensor.chunk(shards, dim=split)[rank]
                shard[meta] = mapped_copy(part.detach(), Path(scratch, name))
            torch.save(shard, directory / f"consolidated.{rank:02d}.pth")
    write_json(directory / "params.json", params)


def _meta_name(name: str) -> tuple[str, int | None]:
    """layers.3.mlp.up_proj.weight -> (layers.3.feed_forward.w3.weight, 0)."""
    module = name.removesuffix(".weight")
    block, layer = "", module.split(".", 2)
    if layer[0] == "layers":
        block, module = f"layers.{layer[1]}.", layer[2]
    meta, split = META_MODULES[module]
    return f"{block}{meta}.weight", split


def _half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows from rotary pairs (2i, 2i + 1) to pairs (i, i + D / 2)."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of _half_split."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _load_pth(file: Path) -> dict[str, Tensor]:
    try:
        shard = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise PunaError(f"{file}: truncated or not a file of tensors ({reason}); copy it again") from error
    if not isinstance(shard, dict) or not all(isinstance(value, Tensor) for value in shard.values()):
        raise PunaError(f"{file}: not a dictionary of tensors, as Meta's files are")
    shard.pop("rope.freqs", None)  # derivable; older files have it
    return shard


def _meta_ffn_dim(dim: int, multiplier: float | None, multiple_of: int) -> int:
    hidden = int(8 * dim / 3)
    hidden = hidden if multiplier is None else int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def config_to_params(config: LlamaConfig) -> dict[str, Any]:
    """What Meta's params.json says of a configuration; it has no word for max_seq_len."""
    if config.rope_scaling not in (None, RopeScaling()):
        raise PunaError(f"rope_scaling = {config.rope_scaling}: Meta's params.json can only say {RopeScaling()}")
    # Meta does not store the FFN's size but a factor on 8/3 dim, then rounds up. The shortest decimal that
    # lands on our size is the published one: 1.3, 1.3 and 1.2 for 8B, 70B and 405B.
    multiple_of = min(config.ffn_dim & -config.ffn_dim, 1024)
    middle = (config.ffn_dim - multiple_of / 2 + 0.75) / int(8 * config.dim / 3)
    shortest = (round(middle, digits) for digits in range(1, 18))
    return {
        "dim": config.dim,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": next(m for m in shortest if _meta_ffn_dim(config.dim, m, multiple_of) == config.ffn_dim),
        "multiple_of": multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": config.rope_scaling is not None,
    }


def read_meta_config(directory: str | Path, max_seq_len: int = 131_072) -> LlamaConfig:
    """The LlamaConfig in params.json."""
    path = Path(directory) / "params.json"
    return config_from_params(read_json(path), path, max_seq_len)


def config_from_params(params: dict[str, Any], path: Path, max_seq_len: int) -> LlamaConfig:
    """Defaults for absent keys are those of llama_models' ModelArgs."""
    try:
        multiplier, multiple_of = params.get("ffn_dim_multiplier"), params.get("multiple_of", 256)
        return LlamaConfig(
            vocab_size=params["vocab_size"],
            dim=params["dim"],
            layers=params["n_layers"],
            heads=params["n_heads"],
            kv_heads=params.get("n_kv_heads") or params["n_heads"],
            ffn_dim=_meta_ffn_dim(params["dim"], multiplier, multiple_of),
            max_seq_len=max_seq_len,
            norm_eps=params.get("norm_eps", 1e-5),
            rope_theta=float(params.get("rope_theta", 500_000.0)),
            rope_scaling=RopeScaling() if params.get("use_scaled_rope", False) else None,
        )
    except KeyError as error:
        raise PunaError(f"{path}: has no {error}") from error
    except (TypeError, ValueError) as error:
        raise PunaError(f"{path}: {error}") from error
