"""Models for other programs."""

from pathlib import Path

import torch

from puna.errors import PunaError
from puna.model.weights import load_hf
from puna.model.weights_meta import save_meta
from puna.text.tokenizer import Tokenizer
from puna.train.save import save_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_model(model: Path, out: Path, form: str, dtype: str) -> None:
    """Write the model directory `model` to `out` as "hf" or "meta", tokenizer included; `out` must not exist."""
    if form not in ("hf", "meta"):
        raise PunaError(f"--to {form} is not known; use hf or meta")
    if dtype not in DTYPES:
        raise PunaError(f"--dtype {dtype} is not known; use {', '.join(DTYPES)}")
    if out.exists():
        raise PunaError(f"{out} exists already; name a directory that does not")
    aside = out.with_name(out.name + ".partial")
    llama, tokenizer = load_hf(model, dtype=DTYPES[dtype]), Tokenizer.load(model)
    if form == "hf":
        save_model(llama, tokenizer, aside, DTYPES[dtype])
    else:
        save_meta(llama, aside)
        tokenizer.save(aside)
    aside.rename(out)
