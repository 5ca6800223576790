"""The end of every training stage: a model directory."""

from pathlib import Path

import torch

from puna.model.llama import Llama
from puna.model.weights import save_hf
from puna.text.tokenizer import Tokenizer


def save_model(
    model: Llama, tokenizer: Tokenizer, directory: Path, dtype: torch.dtype = torch.bfloat16, chat: bool = True
) -> None:
    """Weights, by default in bf16 as Llama 3.1 was published, with the tokenizer, and its chat template for a chat
    model; a base model stops at end_of_text."""
    stops = sorted(tokenizer.stop_ids) if chat else [tokenizer.eos_id]
    save_hf(
        model,
        model.config,
        directory,
        dtype=dtype,
        bos_id=tokenizer.bos_id,
        eos_ids=stops,
        pad_id=tokenizer.pad_id,
    )
    tokenizer.save(directory, chat=chat)
