"""Models for other programs: Hugging Face's form, Meta's, GGUF for llama.cpp, FP8 for vLLM."""

import json
import shutil
from pathlib import Path

import torch

from puna.drift import drift, reward_drift, rows_held_out, rows_of_its_own, rows_of_text
from puna.errors import PunaError
from puna.model.fp8 import quantize
from puna.model.gguf import save_gguf
from puna.model.licence import card_name, carry_licences, write_card
from puna.model.llama import LlamaConfig, count_parameters
from puna.model.weights import load_hf, read_config, read_json
from puna.model.weights_meta import save_meta
from puna.recipe import load_recipe
from puna.run import write_text
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import CHAT_TEMPLATE
from puna.train.save import save_model
from puna.unpack import is_checkpoint, unpack

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMS = {"hf": tuple(DTYPES), "meta": tuple(DTYPES), "gguf": (*DTYPES, "q8_0"), "fp8": ("bf16", "fp16")}
"""Each form and the precisions it can have; that of fp8 is for what is not in FP8."""
USE = {
    "hf": "transformers and vLLM load this directory as it is (`vllm serve {folder}`).",
    "meta": "Meta's own code loads this directory (`consolidated.00.pth`, `params.json`).",
    "gguf": "llama.cpp runs the file (`llama-cli -m {file}`).",
    "fp8": """vLLM loads this directory as it is (`vllm serve {folder}`). The feed-forward matrices of all layers but
the first and the last are in FP8 (`fbgemm_fp8`), scaled by row, activations by token.""",
}


def export_model(
    model: Path,
    out: Path,
    form: str,
    dtype: str,
    text: Path | None = None,
    reward: Path | None = None,
    prompts: Path | None = None,
    tokenizer: Path | None = None,
) -> dict[str, float]:
    """Write `model` to the new directory `out`, with its tokenizer, licence files and a card.

    `model` is a model directory, or the checkpoint of a model in parts; its tokenizer is that of the run in which it
    lies, or lies in the directory `tokenizer`, with a chat template if the model chats.

    `form` is "hf", "meta", "gguf" (one file, OUT/OUT-DTYPE.gguf) or "fp8"; for "fp8" the result tells the drift, which
    also lies in OUT/drift.json: on `text`, else on what the run held out, else on what the model writes itself; and in
    the scores that the reward model `reward` gives to answers to `prompts`.
    """
    _check(out, form, dtype, text, reward, prompts)
    if not is_checkpoint(model):
        if tokenizer:
            raise PunaError(f"--tokenizer is for a checkpoint; {model} has its own")
        return _export(model, model.parent, out, form, dtype, text, reward, prompts)
    unpacked = out.with_name(out.name + ".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)  # left by an export that was cut off
    try:
        chat = tokenizer is not None and is_chat_model(tokenizer)
        run = unpack(model, unpacked, DTYPES.get(dtype, torch.float32), tokenizer, chat)
        return _export(unpacked, run, out, form, dtype, text, reward, prompts)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _export(
    model: Path,
    run: Path,
    out: Path,
    form: str,
    dtype: str,
    text: Path | None,
    reward: Path | None,
    prompts: Path | None,
) -> dict[str, float]:
    """Of a model directory; `run` is the folder in which its run's artifacts lie."""
    if read_json(model / "config.json").get("quantization_config"):
        raise PunaError(f"{model} is in FP8; export the model it was made from")
    config, tokenizer = read_config(model), Tokenizer.load(model)
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # left by an export that was cut off
    aside.mkdir(parents=True)
    carry_licences([model], aside)
    name, chat = card_name(aside, out.name), is_chat_model(model)
    file = f"{name}-{dtype}.gguf"
    figures: dict[str, float] = {}
    if form == "gguf":
        template = CHAT_TEMPLATE.read_text("utf-8") if chat else None
        save_gguf(load_hf(model), tokenizer, aside / file, dtype, name, template)
    elif form == "meta":
        save_meta(load_hf(model, DTYPES[dtype]), aside)
        tokenizer.save(aside, chat)
    else:
        llama = load_hf(model, DTYPES[dtype])
        save_model(quantize(llama) if form == "fp8" else llama, tokenizer, aside, DTYPES[dtype], chat)
    if form == "fp8":
        figures = _measure(model, aside, tokenizer, run, text, reward, prompts)
        write_text(aside / "drift.json", json.dumps(figures, indent=1) + "\n")
    use = USE[form].format(folder=out.name, file=file)
    _write_card(model, run, aside, out.name, _about(config, chat, dtype, use, figures))
    aside.rename(out)
    return figures


def _check(out: Path, form: str, dtype: str, text: Path | None, reward: Path | None, prompts: Path | None) -> None:
    if form not in FORMS:
        raise PunaError(f"--to {form} is not known; use {', '.join(FORMS)}")
    if dtype not in FORMS[form]:
        raise PunaError(f"--dtype {dtype} cannot be had with --to {form}; use {', '.join(FORMS[form])}")
    if (text or reward or prompts) and form != "fp8":
        raise PunaError(f"--text, --reward-model and --prompts measure the drift of --to fp8; --to {form} has none")
    if bool(reward) != bool(prompts):
        raise PunaError("--reward-model scores answers to --prompts: give both or neither")
    for option, path in (("--text", text), ("--reward-model", reward), ("--prompts", prompts)):
        if path and not path.exists():
            raise PunaError(f"{option} {path}: no such file; name one that exists")
    if out.exists():
        raise PunaError(f"{out} exists already; name a directory that does not")


def is_chat_model(model: Path) -> bool:
    """Whether a model directory has a chat template, in a file of its own or within the tokenizer's configuration."""
    config = model / "tokenizer_config.json"
    inside = config.is_file() and "chat_template" in json.loads(config.read_text("utf-8"))
    return inside or (model / "chat_template.jinja").is_file()


def _measure(
    model: Path,
    quantized: Path,
    tokenizer: Tokenizer,
    run: Path,
    text: Path | None,
    reward: Path | None,
    prompts: Path | None,
) -> dict[str, float]:
    """The drift of what was written, computed as the engine would: in fp32 on a CPU, in bf16 on a GPU."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    before, after = load_hf(model, dtype, device), load_hf(quantized, dtype, device)
    shards = run / "shards"
    if text:
        rows = rows_of_text(text, tokenizer)
    elif (shards / "held_out.bin").is_file():
        rows = rows_held_out(shards, tokenizer)
    else:
        rows = rows_of_its_own(before, tokenizer)
    figures = drift(before, after, rows)
    return figures | (reward_drift(before, after, tokenizer, reward, prompts) if reward and prompts else {})


def _write_card(model: Path, run: Path, out: Path, name: str, about: str) -> None:
    """The card that lies beside the weights, if there is one: it was written by someone who knew more."""
    if (model / "README.md").is_file():
        (out / "README.md").write_bytes((model / "README.md").read_bytes())
        return
    recipe = run / "recipe.toml"
    write_card(out, name, load_recipe(recipe).license if recipe.is_file() else "", about)


def _about(config: LlamaConfig, chat: bool, dtype: str, use: str, figures: dict[str, float]) -> str:
    kind = "A chat model" if chat else "A base model"
    shape = {
        "layers": config.layers,
        "width": config.dim,
        "heads": config.heads,
        "key-value heads": config.kv_heads,
        "vocabulary": config.vocab_size,
        "context": config.max_seq_len,
    }
    lines = f"""{kind} of {count_parameters(config):,} parameters in Llama 3.1's architecture, made with puna.

| {" | ".join(shape)} | precision |
|{"---|" * (len(shape) + 1)}
| {" | ".join(f"{value:,}" for value in shape.values())} | {dtype} |

{use}
"""
    if figures:
        lines += f"""
Against the model before quantisation, on {figures["tokens"]:,} tokens: logits change by {figures["logit_error"]:.2%} of
their spread, {figures["same_choice"]:.1%} of the likeliest tokens stay, perplexity goes from
{figures["perplexity_before"]:.4g} to {figures["perplexity_after"]:.4g}.
"""
    if "responses" in figures:
        lines += f"""
A reward model gives {figures["responses"]:,.0f} answers {figures["reward_before"]:.4g} on average before and
{figures["reward_after"]:.4g} after; the distributions differ by {figures["reward_distance"]:.3f} at most
(Kolmogorov-Smirnov, p = {figures["reward_p"]:.2g}).
"""
    return lines
