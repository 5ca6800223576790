"""Which weights decay, and the learning rate against torch's schedulers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from puna.model.llama import Llama
from puna.recipe import Training
from puna.train.optimizer import learning_rate, make_optimizer


def test_only_matrices_decay(make_model: Callable[[], Llama], make_options: Callable[..., Training]):
    model = make_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = make_optimizer(model, make_options(peak_lr=0.5, weight_decay=0.2))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in model.named_parameters():
        shrunk = 1.0 if "norm" in name else 1 - 0.5 * 0.2
        assert torch.allclose(weight, before[name] * shrunk, rtol=1e-6), name
    assert sum("norm" in name for name in before) == 5


def test_every_weight_is_in_one_group_and_the_knobs_arrive(make_model: Any, make_options: Callable[..., Training]):
    model = make_model()
    optimizer = make_optimizer(model, make_options(beta1=0.8, beta2=0.7, epsilon=1e-3))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.8, 0.7), 1e-3)}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "warmup", "final"), [(50, 10, 0.1), (30, 0, 0.0), (12, 1, 0.5)])
def test_schedule_is_torchs(
    make_options: Callable[..., Training], schedule: str, steps: int, warmup: int, final: float
):
    options = make_options(schedule=schedule, warmup_steps=warmup, final_lr=final, peak_lr=3e-4)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    fall = steps - 1 - warmup
    if schedule == "cosine":
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, fall, eta_min=3e-4 * final)
    else:
        theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=fall)
    for step in range(warmup, steps):
        assert learning_rate(step, steps, options) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-18
        )
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_corners(make_options: Callable[..., Training], schedule: str):
    options = make_options(schedule=schedule, warmup_steps=10, final_lr=0.01, peak_lr=2.0)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)  # the first step already learns
    assert rates[4] == pytest.approx(1.0)
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[99] == pytest.approx(0.02)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 9), (6, 5)])
def test_runs_no_longer_than_their_warm_up_have_a_rate(make_options: Callable[..., Training], steps: int, warmup: int):
    options = make_options(warmup_steps=warmup, peak_lr=1.0)
    rates = [learning_rate(step, steps, options) for step in range(steps)]
    assert rates == [min(1.0, (step + 1) / max(1, warmup)) for step in range(steps)]
