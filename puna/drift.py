"""How far quantisation moves a model: logits, choices and perplexity on the same tokens, and how a reward model likes
what it writes (the paper checks FP8 by the distribution of rewards, section 6.2 and figure 26: benchmarks see too
little)."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.model.llama import Llama
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.reward_model import Scorer
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer

ROWS, LENGTH = 16, 512
"""Tokens that are looked at, ours."""
PROMPTS, LONGEST = 256, 256
"""Prompts that are answered, and tokens of an answer, ours; the paper has 100,000 responses."""


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


def reward_drift(before: Llama, after: Llama, tokenizer: Tokenizer, reward: Path, prompts: Path) -> dict[str, float]:
    """Scores that the reward model `reward` gives to answers of both models, drawn with the same random numbers:

    reward_before, reward_after: their means; reward_spread_before, reward_spread_after: their standard deviations
    reward_distance: the largest gap between the two cumulative distributions (Kolmogorov-Smirnov)
    reward_p: how likely a gap so large is between two draws of one distribution

    `prompts` is JSONL in OpenAI's form ({"messages": [...], "tools": [...]}), each up to its first answer.
    """
    scorer = Scorer.load(reward)
    if scorer.tokenizer.fingerprint() != tokenizer.fingerprint():
        raise PunaError(
            f"{reward} has another tokenizer than the model; a reward model of the same family has the same"
        )
    asked = [_prompt(line, tokenizer) for line, _ in zip(read_jsonl(prompts), range(PROMPTS))]
    if not asked:
        raise PunaError(f"{prompts} has no prompt; it is JSONL with `messages`")
    sampling = Sampling(max_tokens=LONGEST, temperature=1.0)
    scores = []
    for model in (before, after):
        written = Engine(model, tokenizer).generate(asked, sampling)
        scores.append(np.array([score for (score,) in scorer.score_responses(list(zip(asked, written)))]))
    gap = ks_2samp(*scores)
    figures = {"responses": len(asked), "reward_before": scores[0].mean(), "reward_after": scores[1].mean()}
    figures |= {"reward_spread_before": scores[0].std(), "reward_spread_after": scores[1].std()}
    figures |= {"reward_distance": gap.statistic, "reward_p": gap.pvalue}  # pyright: ignore[reportAttributeAccessIssue]
    return {name: float(value) for name, value in figures.items()}


def _prompt(line: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    chat = to_chat(line)
    roles = [message.role for message in chat.messages]
    chat.messages = chat.messages[: roles.index("assistant")] if "assistant" in roles else chat.messages
    return render(chat, tokenizer, generation_prompt=True).ids


def rows_of_text(path: Path, tokenizer: Tokenizer) -> Tensor:
    """Rows spread over a text file, each after begin_of_text: [R, S]."""
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
