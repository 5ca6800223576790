"""The mean of weights over an anneal, also when it was interrupted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from puna.errors import PunaError
from puna.model.llama import Llama
from puna.train.average import WeightAverage


def fill(model: Llama, value: float) -> None:
    for weight in model.parameters():
        torch.nn.init.constant_(weight, value)


def test_the_mean_is_of_evenly_spread_steps_and_the_last(make_model: Callable[[], Llama], tmp_path: Path):
    model = make_model()
    average = WeightAverage(tmp_path, 0, steps=20, anneal_steps=8, count=4)
    assert average.chosen == [14, 16, 18, 20]
    for step in range(1, 21):
        fill(model, float(step))
        average(step, model)
    assert all(torch.allclose(weight, torch.tensor(17.0)) for weight in model.parameters())


@pytest.mark.parametrize("killed", [13, 15, 19])
def test_a_resumed_training_ends_in_the_same_mean(make_model: Callable[[], Llama], tmp_path: Path, killed: int):
    """Steps after the last checkpoint, two before the kill, are taken again."""
    model, means = make_model(), []
    for name, steps in {"through": range(1, 21), "killed": [*range(1, killed), *range(killed - 2, 21)]}.items():
        average = WeightAverage(tmp_path / name, 0, steps=20, anneal_steps=9, count=3)
        for step in steps:
            fill(model, 1 / step)
            average(step, model)
        means.append(model.norm.weight[0].item())
    assert means[0] == means[1]


def test_weights_that_are_gone_are_named(make_model: Callable[[], Llama], tmp_path: Path):
    average = WeightAverage(tmp_path, 0, steps=4, anneal_steps=4, count=2)
    average(2, make_model())
    with pytest.raises(PunaError, match=r"step-2-of-rank-1.safetensors is gone"):
        WeightAverage(tmp_path, 1, steps=4, anneal_steps=4, count=2)(4, make_model())


def test_one_is_the_last(tmp_path: Path):
    assert WeightAverage(tmp_path, 0, steps=7, anneal_steps=5, count=1).chosen == [7]
