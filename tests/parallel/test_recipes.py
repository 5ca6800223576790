"""The recipes of large models, cut for the machines that they are meant for, up to the first step: nothing is held."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from puna.model.llama import PRESETS, count_parameters
from puna.model.weights import empty_model
from puna.parallel.parts import Parts
from puna.parallel.place import local
from puna.recipe import Pretrain, load_recipe
from puna.train.launch import World
from puna.train.loop import rows_of
from puna.train.losses import NextToken
from puna.train.optimizer import make_optimizer

RECIPES = Path(__file__).parents[2] / "recipes"
META = torch.device("meta")


@contextmanager
def pretended(rank: int, size: int) -> Iterator[World]:
    """As if this were one of so many processes: what it sends goes nowhere."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield World(rank, size, META)
    finally:
        dist.destroy_process_group()


def cut(name: str, world: World) -> tuple[Parts, Pretrain]:
    options = load_recipe(RECIPES / f"{name}.toml").pretrain
    return Parts(empty_model(PRESETS[name]), NextToken(), options, world, compiled=False), options


@pytest.mark.filterwarnings("ignore")  # torch's, about itself
@pytest.mark.parametrize(("name", "size"), [("8b", 8), ("70b", 256), ("405b", 16_384)])
def test_a_recipe_is_cut_into_equal_parts(name: str, size: int) -> None:
    with pretended(size // 3, size) as world:
        parts, options = cut(name, world)
        held = sum(local(parameter).numel() for parameter in parts.parameters.values())
        assert held == pytest.approx(count_parameters(PRESETS[name]) / size, rel=0.1)
        make_optimizer(parts.module, options)
        rows = rows_of(range(options.batch_rows), options.micro_rows, *parts.share)
        assert len(rows) == options.batch_rows // options.micro_rows // parts.share[1]
