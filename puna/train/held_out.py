"""Loss on text that was kept out of training."""

import json
import math
from pathlib import Path

import torch

from puna.errors import PunaError
from puna.machine import training_dtype
from puna.model.llama import Llama
from puna.recipe import Training
from puna.text.tokenizer import Tokenizer
from puna.train.batches import IGNORE, Blend, Shards
from puna.train.losses import token_log_probs

HELD_OUT_ROWS = 16
"""Rows that go through the model at once."""


@torch.no_grad()
def held_out_loss(
    model: Llama, tokenizer: Tokenizer, shards: Path, limit: int, device: torch.device, options: Training
) -> dict[str, float]:
    """Loss in nats a token, and bits a byte, on about `limit` held-out tokens: rows drawn from all documents, the
    same for every model. A byte counts where its token is predicted; end_of_text is predicted and has none."""
    seq_len = options.seq_len
    available = json.loads((shards / "shards.json").read_text())["held_out"]["tokens"]
    rows = min(available - 1, limit) // seq_len
    if rows == 0:
        raise PunaError(
            f"{min(available, limit):,} held-out tokens do not fill a row of {seq_len}; raise "
            f"held_out_tokens ({limit:,}) or corpus.held_out"
        )
    held_out = Shards(shards, [Blend(rows, {"held_out": 1.0})], seq_len, 1.0, tokenizer.bos_id, seed=0)
    lengths = torch.zeros(tokenizer.vocab_size, dtype=torch.int64)
    for token, number in tokenizer.ranks.items():
        lengths[number] = len(token)
    nats, tokens, size = 0.0, 0, 0
    dtype = training_dtype(options, device)
    for first in range(0, rows, HELD_OUT_ROWS):
        batch = held_out.rows(range(first, min(rows, first + HELD_OUT_ROWS))).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden(batch.tokens, documents=batch.documents)
            nats -= token_log_probs(hidden.flatten(0, 1), model.lm_head.weight, batch.labels.flatten()).sum().item()
        predicted = batch.labels[batch.labels != IGNORE]
        tokens += predicted.numel()
        size += int(lengths[predicted.cpu()].sum())
    return {"loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size}
