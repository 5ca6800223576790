"""AdamW with decay only where it belongs, and the learning-rate schedule."""

import math

import torch
from torch import nn

from puna.recipe import Training


def make_optimizer(model: nn.Module, options: Training) -> torch.optim.AdamW:
    """AdamW that decays matrices, the embedding's among them, and leaves the norms' scales alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (options.beta1, options.beta2)
    return torch.optim.AdamW(groups, lr=options.peak_lr, betas=betas, eps=options.epsilon, fused=True)


def learning_rate(step: int, steps: int, options: Training) -> float:
    """The rate of step 0..steps-1: linear warm-up to the peak, then cosine or linear to final_lr of it; over the steps
    of an anneal linearly to zero, which it reaches after the last."""
    if (begin := steps - options.anneal_steps) <= step:
        return _scheduled(begin, steps, options) * (steps - step) / options.anneal_steps
    return _scheduled(step, steps, options)


def _scheduled(step: int, steps: int, options: Training) -> float:
    if step < options.warmup_steps:
        return options.peak_lr * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(1, steps - 1 - options.warmup_steps)
    fall = 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1 - done
    return options.peak_lr * (options.final_lr + (1 - options.final_lr) * fall)
