"""How far quantisation moves a model: logits, choices and perplexity, before and after, on the same tokens."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.model.llama import Llama
from puna.text.tokenizer import Tokenizer

ROWS, LENGTH = 16, 512
"""Tokens that are looked at, ours."""


def drift(before: Llama, after: Llama, rows: Tensor) -> dict[str, float]:
    """Figures over all positions of token rows [R, S]:

    logit_error: root mean square of the logits' change, over the spread (standard deviation) of the logits before
    largest_logit_error: the largest change of one logit
    kl: Kullback-Leibler divergence of the next token's distribution after from that before, nats
    same_choice: share of positions whose likeliest token is the same
    perplexity_before, perplexity_after: of each token given those before it
    """
    squares = spread = kl = largest = 0.0
    same = positions = entries = 0
    losses = [0.0, 0.0]
    for row in rows[:, : before.config.max_seq_len].to(before.embed_tokens.weight.device).split(1):
        with torch.inference_mode():
            logits = [model(row)[0, :-1].float() for model in (before, after)]
        log_probs = [x.log_softmax(-1) for x in logits]
        change = logits[1] - logits[0]
        squares += change.double().square().sum().item()
        spread += (logits[0] - logits[0].mean(-1, keepdim=True)).double().square().sum().item()
        largest = max(largest, change.abs().max().item())
        kl += (log_probs[0].exp() * (log_probs[0] - log_probs[1])).double().sum().item()
        same += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
        for i, x in enumerate(log_probs):
            losses[i] -= x.gather(-1, row[0, 1:, None]).double().sum().item()
        positions += change.shape[0]
        entries += change.numel()
    return {
        "tokens": positions,
        "logit_error": math.sqrt(squares / spread),
        "largest_logit_error": largest,
        "kl": kl / positions,
        "same_choice": same / positions,
        "perplexity_before": math.exp(losses[0] / positions),
        "perplexity_after": math.exp(losses[1] / positions),
    }


def rows_of_text(path: Path, tokenizer: Tokenizer) -> Tensor:
    """Rows spread over a text file, each after begin_of_text: [R, S]."""
    if not path.is_file():
        raise PunaError(f"--text {path}: no such file; name one with text like what the model is for")
    return _rows(np.array(tokenizer.encode(path.read_text("utf-8", "replace"))), tokenizer, str(path))


def rows_held_out(shards: Path, tokenizer: Tokenizer) -> Tensor:
    """Rows spread over the documents that a run kept back from training."""
    dtype = json.loads((shards / "shards.json").read_text())["dtype"]
    return _rows(np.memmap(shards / "held_out.bin", dtype, "r"), tokenizer, str(shards))


def rows_of_its_own(model: Llama, tokenizer: Tokenizer) -> Tensor:
    """Rows that the model writes itself, at temperature 1, where there is no other text."""
    sampling = Sampling(max_tokens=LENGTH // 2, temperature=1.0)
    written = Engine(model, tokenizer).generate([[tokenizer.bos_id]], sampling, n=ROWS // 2)[0]
    tokens = [token for text in written for token in text]
    return _rows(np.array(tokens), tokenizer, "what the model wrote")


def _rows(tokens: np.ndarray, tokenizer: Tokenizer, name: str) -> Tensor:
    length = min(LENGTH, len(tokens) + 1)
    count = min(ROWS, len(tokens) // (length - 1)) if length > 1 else 0
    if count == 0:
        raise PunaError(f"{name}: no token to measure the drift on; give more --text")
    starts = np.linspace(0, len(tokens) - (length - 1), count, dtype=int)
    rows = [[tokenizer.bos_id, *tokens[start : start + length - 1].tolist()] for start in starts]
    return torch.tensor(rows)
