"""From logits to tokens: every request by its own rule and from its own random numbers.

A draw takes one uniform number and looks up where it falls in the cumulated probabilities. A request's numbers come
from (seed, its own number) alone, and each row is computed by itself, so what shares its step does not matter.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from puna.infer.request import Sampling, TokenLogprob

COLDEST = 1e-5
"""Temperatures below are this one: logits divided by them would not be numbers in fp32."""


def choose(logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[float]) -> list[int]:
    """The next token of each row from its logits [rows, vocab], fp32, and its number in [0, 1)."""
    drawn = [i for i, sampling in enumerate(samplings) if sampling.temperature > 0]
    if len(drawn) == len(samplings):
        return draw(probabilities(logits, samplings), uniforms).tolist()
    chosen = logits.argmax(-1)
    if drawn:
        probs = probabilities(logits[drawn], [samplings[i] for i in drawn])
        chosen[drawn] = draw(probs, [uniforms[i] for i in drawn])
    return chosen.tolist()


def probabilities(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """What each row of logits [rows, vocab] draws from, at temperatures above 0: weights, zero for what is cut off."""
    temperatures = torch.tensor([max(s.temperature, COLDEST) for s in samplings], device=logits.device)[:, None]
    probs = (logits / temperatures).softmax(-1)
    if cut := [i for i, s in enumerate(samplings) if s.top_p < 1 or s.top_k or s.min_p]:
        probs[cut] = truncated(probs[cut], [samplings[i] for i in cut])
    return probs


def truncated(probs: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Probabilities [rows, vocab] without what top_k, top_p and min_p leave out, in this order."""
    vocab = probs.shape[1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=probs.device)[:, None]

    top_k, top_p = column([float(s.top_k or vocab) for s in samplings]), column([s.top_p for s in samplings])
    ranked, ids = probs.sort(dim=-1, descending=True, stable=True)
    ranked = torch.where(torch.arange(vocab, device=probs.device) < top_k, ranked, 0.0)
    before = ranked.cumsum(-1) - ranked
    kept = before < top_p * ranked.sum(-1, keepdim=True)
    kept[:, 0] = True  # a top_p that is zero in fp32 would keep none
    kept &= ranked >= column([s.min_p for s in samplings]) * ranked[:, :1]
    return torch.zeros_like(probs).scatter_(1, ids, torch.where(kept, ranked, 0.0))


def draw(probs: Tensor, uniforms: Sequence[float]) -> Tensor:
    """For each row of weights [rows, vocab] the token at which its uniform number in [0, 1) falls, [rows]."""
    total = probs.double().cumsum(-1)
    whole = total[:, -1:].contiguous()
    points = torch.tensor(uniforms, dtype=torch.float64, device=probs.device)[:, None] * whole
    # rounding must not lead past the last token with any weight
    points = torch.minimum(points, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(total, points, right=True)[:, 0]


def restricted(logits: Tensor, biases: Sequence[Mapping[int, float]], masks: Sequence[np.ndarray | None]) -> Tensor:
    """Logits [rows, vocab] with each row's bias added and what its mask [vocab] does not allow taken out."""
    if not any(biases) and all(mask is None for mask in masks):
        return logits
    logits, device = logits.clone(), logits.device
    # all rows at once: on a GPU each operation whose size depends on data would wait for it
    if added := [(row, token, value) for row, bias in enumerate(biases) for token, value in bias.items()]:
        rows, tokens, values = zip(*added)
        places = torch.tensor(rows, device=device), torch.tensor(tokens, device=device)
        logits.index_put_(places, torch.tensor(values, dtype=logits.dtype, device=device), accumulate=True)
    if kept := [(row, mask) for row, mask in enumerate(masks) if mask is not None]:
        rows = torch.tensor([row for row, _ in kept], device=device)
        allowed = torch.from_numpy(np.stack([mask for _, mask in kept])).to(device)
        logits[rows] = logits[rows].masked_fill_(~allowed, float("-inf"))
    return logits


def token_logprobs(logits: Tensor, tokens: Sequence[int], likeliest: int) -> list[TokenLogprob]:
    """For each row of logits [rows, vocab] the log-probability of its token and of the `likeliest` ones."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top = logprobs.topk(min(likeliest, logprobs.shape[1]), dim=-1)
    pairs = [tuple(zip(ids, values)) for ids, values in zip(top.indices.tolist(), top.values.tolist())]
    return [TokenLogprob(token, value, best) for token, value, best in zip(tokens, chosen, pairs)]
