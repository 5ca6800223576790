"""Llama checkpoints in and out, in Hugging Face's form: config.json and safetensors. Meta's: weights_meta.py.

Loading is frugal: the model is built without memory and takes the mapped tensors of the file as its own.
Before any tensor is read, the names and shapes in the files are compared with those that the configuration
asks for. Saving the same weights twice writes the same bytes. Every error is a PunaError that names the file.

Directories in FP8 (`fbgemm_fp8`) are read and written too; which matrices are in FP8 shows in the state's names.

Not here: tokenizer files and chat template (puna.text.tokenizer), other quantised checkpoints, pickled ones.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from puna.errors import PunaError
from puna.model import fp8
from puna.model.llama import Llama, LlamaConfig, RopeScaling

Shape = tuple[int, ...]


class Piece(NamedTuple):
    """What a process that holds a part of a model needs of one tensor, and the tensor's name in that part."""

    name: str
    where: tuple[slice, ...]
    """The places along each dim; () is all."""


def read_config(directory: str | Path) -> LlamaConfig:
    """The LlamaConfig in a Hugging Face directory's config.json, in the form of transformers 4 or 5."""
    path = Path(directory) / "config.json"
    return config_from_hf(read_json(path), path)


def load_hf(
    directory: str | Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    cut: Callable[[Llama], Mapping[str, Piece]] | None = None,
) -> Llama:
    """Load a Hugging Face directory; `dtype` None keeps the file's, and what is in FP8 stays so. A tied output matrix
    becomes a copy. `cut` makes the empty model the part that this process holds, and says which pieces of the whole
    model's tensors to read for it; nothing else is read."""
    directory = Path(directory)
    config, raw = read_config(directory), read_json(directory / "config.json")
    model, tied = empty_model(config), raw.get("tie_word_embeddings")
    if kept := raw.get("quantization_config"):
        linears = [_hf_name(name) for name in fp8.linears(model)]
        fp8.replace(model, [name.removeprefix("model.") for name in fp8.converted(linears, kept)])
    expected = {_hf_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del expected["lm_head.weight"]

    files = _safetensors_files(directory)
    found: dict[str, tuple[Shape, Path]] = {}
    for file in files:
        with _opened(file) as tensors:
            found |= {key: (tuple(tensors.get_slice(key).get_shape()), file) for key in tensors.keys()}  # noqa: SIM118
    if tied:
        found.pop("lm_head.weight", None)
    check_tensors(found, expected, directory)

    pieces = cut(model) if cut else {name: Piece(name, ()) for name in model.state_dict()}
    state: dict[str, Tensor] = {}
    for name, (place, where) in pieces.items():
        copied = tied and name == "lm_head.weight"
        key = _hf_name("embed_tokens.weight" if copied else name)
        with _opened(found[key][1]) as tensors:
            tensor = tensors.get_slice(key)[where] if where else tensors.get_tensor(key)
        state[place] = tensor.to(device, _stored(key, tensor, dtype), copy=copied)
    return with_state(model, state, device)


def save_hf(
    model_or_state: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: float = 5e9,
    bos_id: int,
    eos_ids: Sequence[int],
    pad_id: int,
) -> None:
    """Write config.json, generation_config.json and the weights as Hugging Face has them, in files of up to
    `shard_bytes` (one tensor may be larger); `dtype` None keeps each tensor's own, and what is in FP8 stays so."""
    state = model_or_state.state_dict() if isinstance(model_or_state, Llama) else model_or_state
    empty = empty_model(config)
    linears = fp8.linears(empty)
    quantized = fp8.replace(empty, [name for name in linears if f"{name}.weight_scale" in state])
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    found = {name: (tuple(tensor.shape), None) for name, tensor in state.items()}
    check_tensors(found, shapes, "the model to save")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Old files go first: a stale one could be read in place of the new, and one that is mapped into the model
    # being saved must be unlinked, not overwritten. config.json comes last: beside it, the weights are whole.
    remove_files(directory, "config.json", "model*.safetensors", "model.safetensors.index.json")

    shards = _shards({name: state[name] for name in shapes}, dtype, int(shard_bytes))
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else ["model.safetensors"]
    for file, names in zip(files, shards):
        stored = {name: state[name].detach().to("cpu", _stored(name, state[name], dtype)) for name in names}
        tensors = {_hf_name(name): tensor.contiguous() for name, tensor in stored.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {_hf_name(name): file for file, names in zip(files, shards) for name in names}
        total = sum(_bytes(name, state[name], dtype) for name in shapes)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / "model.safetensors.index.json", index)

    tokens = {"bos_token_id": bos_id, "eos_token_id": list(eos_ids), "pad_token_id": pad_id}
    write_json(directory / "generation_config.json", tokens)
    content = config_to_hf(config, dtype or state["embed_tokens.weight"].dtype) | tokens
    if quantized:
        content["quantization_config"] = fp8.description([_hf_name(name) for name in linears if name not in quantized])
    write_json(directory / "config.json", content)


def _hf_name(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The precision that a tensor is kept in when `dtype` is asked for."""
    quantized = tensor.dtype == torch.float8_e4m3fn or name.endswith(".weight_scale")
    return tensor.dtype if quantized or dtype is None else dtype


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * _stored(name, tensor, dtype).itemsize


def _shards(state: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> list[list[str]]:
    """Names in order, cut before the tensor that would take a shard over the limit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + _bytes(name, tensor, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(name, tensor, dtype)
    return shards


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    if not index.exists():
        raise PunaError(f"{directory}: neither model.safetensors nor {index.name} (no other form is read)")
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise PunaError(f"{index}: lists {name!r}, which is not a file beside it; copy the directory again")
    return [directory / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise PunaError(f"{file}: truncated or not a safetensors file ({error}); copy it again") from error


def config_to_hf(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """A config.json in the form of the published Llama 3.1 files, which transformers 4 and 5 both read."""
    scaling = config.rope_scaling
    rope_scaling = scaling and {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def config_from_hf(raw: dict[str, Any], path: Path) -> LlamaConfig:
    """From a config.json; defaults for absent keys are those of transformers' LlamaConfig. PunaError names `path`."""
    default = "LlamaForCausalLM" if raw.get("model_type") == "llama" else raw.get("model_type")
    architecture = (raw.get("architectures") or [default])[0]
    if architecture != "LlamaForCausalLM":
        raise PunaError(f"{path}: architecture {architecture}; only LlamaForCausalLM can be loaded")
    try:
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # transformers 5, else 4
        only = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
        only["head_dim"] = raw["hidden_size"] // raw["num_attention_heads"]
        for key, value in only.items():
            if raw.get(key) not in (None, value):
                raise PunaError(f"{key} = {raw[key]!r}: only {value!r} can be loaded")
        fp8.check(raw.get("quantization_config"))
        return LlamaConfig(
            vocab_size=raw["vocab_size"],
            dim=raw["hidden_size"],
            layers=raw["num_hidden_layers"],
            heads=raw["num_attention_heads"],
            kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
            ffn_dim=raw["intermediate_size"],
            max_seq_len=raw.get("max_position_embeddings", 2048),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            rope_scaling=_scaling_from_hf(rope),
        )
    except KeyError as error:
        raise PunaError(f"{path}: has no {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise PunaError(f"{path}: {error}") from error


def _scaling_from_hf(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise PunaError(f"rope_type = {kind!r}: only 'llama3' and 'default' can be loaded")
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_seq_len=rope["original_max_position_embeddings"],
    )


# -- also for weights_meta.py --


def empty_model(config: LlamaConfig) -> Llama:
    with torch.device("meta"):
        return Llama(config)


def with_state(model: Llama, state: dict[str, Tensor], device: torch.device | str) -> Llama:
    model.load_state_dict(state, assign=True)
    model.rope.to(device)
    return model


def mapped_copy(tensor: Tensor, file: Path) -> Tensor:
    """The same values in a new file that is mapped into memory: what is not in use need not stay there."""
    place = {"filename": str(file), "shared": True, "size": tensor.numel(), "dtype": tensor.dtype}
    torch.from_file(**place).view(tensor.shape).copy_(tensor)
    return torch.from_file(**place).view(tensor.shape)  # mapped anew: what was written is not counted as ours


def check_tensors(
    found: Mapping[str, tuple[Shape, Path | None]], expected: Mapping[str, Shape], where: Path | str
) -> None:
    """Raise a PunaError that lists tensors missing, surplus or of another shape, each with its file."""
    wrong = [f"{name} {list(shape)} is missing" for name, shape in expected.items() if name not in found]
    for name, (shape, file) in found.items():
        place = f" in {file.name}" if file else ""
        if name not in expected:
            wrong.append(f"{name} {list(shape)}{place} is not part of the model")
        elif shape != expected[name]:
            wrong.append(f"{name} is {list(shape)}{place}, the configuration asks for {list(expected[name])}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise PunaError(f"{where} does not match its configuration: {'; '.join(wrong[:5])}{more}")


def remove_files(directory: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in directory.glob(pattern):
            path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PunaError(f"{path}: no such file; the directory of a model has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PunaError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise PunaError(f"{path}: not a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
