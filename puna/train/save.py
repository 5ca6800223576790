"""The end of every training stage: a model directory."""

from pathlib import Path

import torch

from puna.model.llama import Llama
from puna.model.weights import save_hf
from puna.text.tokenizer import Tokenizer


def save_model(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """Weights in bf16, as Llama 3.1 was published, with its tokenizer and chat template."""
    ids = {"bos_id": tokenizer.bos_id, "eos_ids": sorted(tokenizer.stop_ids), "pad_id": tokenizer.pad_id}
    save_hf(model, model.config, directory, dtype=torch.bfloat16, **ids)
    tokenizer.save(directory)
