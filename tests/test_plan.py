"""The plan against what the paper publishes."""

import pytest

from puna.errors import PunaError
from puna.machine import find_machine, peak_flops
from puna.model.llama import PRESETS, Llama, count_parameters
from puna.plan import STATE_BYTES, duration, memory, plan_table, stage_tokens
from puna.pretrain import model_config
from puna.recipe import Model, Recipe


def test_the_405b_takes_the_published_flops():
    """15.6T tokens through 405B parameters are 3.8e25 FLOPs (section 3.2.1), to which attention adds a little."""
    recipe = Recipe(name="405b", model=Model(preset="405b"))
    _, tokens, _ = dict(stage_tokens(recipe))["pretrain"]
    assert tokens == pytest.approx(15.6e12, rel=1e-6)
    cells = [str(cell) for column in _table(recipe, "16384 x h100").columns for cell in column.cells]
    (flops,) = (float(cell) for cell in cells if cell.endswith("e+25"))
    assert 3.79e25 < flops < 3.79e25 * 1.09
    assert any("does not fit" in cell for cell in cells)


def test_memory_counts_every_parameter_and_grows_with_the_batch():
    config = model_config(Model(preset="1m"), 4096)
    knobs = Recipe(name="x").pretrain
    assert memory(config, knobs) > STATE_BYTES * count_parameters(config)
    wide = knobs.model_copy(update={"micro_rows": 2})
    assert memory(config, wide) > memory(config, knobs)


def test_state_bytes_are_those_of_the_training_loop():
    import torch

    from puna.recipe import Training
    from puna.train.loop import flatten_gradients
    from puna.train.optimizer import make_optimizer

    model = Llama(model_config(Model(preset="1m", dim=32, layers=1, heads=2, kv_heads=1, ffn_dim=64), 300))
    model.init_weights()
    gradient = flatten_gradients(model)
    optimizer = make_optimizer(model, Training())  # pyright: ignore[reportCallIssue]
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for k, t in s.items() if k != "step")
    weights = sum(p.nbytes for p in model.parameters())
    assert weights + gradient.nbytes + moments == STATE_BYTES * count_parameters(model.config)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("text", ["h100", "8 x h100", "8xH100", "rtx4090"])
def test_machines_are_found(text: str):
    machine = find_machine(text)
    assert machine.processors == (8 if text[0] == "8" else 1)
    assert machine.flops in (989e12, 165e12)


@pytest.mark.parametrize("text", ["abacus", "8 x abacus", "x h100", "0.5 x h100"])
def test_unknown_machines_are_refused_with_those_known(text: str):
    with pytest.raises(PunaError, match="h100"):
        find_machine(text)


def test_this_machine_has_a_measured_peak():
    import torch

    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e13
    assert find_machine("this").processors >= 1


def test_an_unknown_preset_names_the_known():
    with pytest.raises(PunaError, match="8b, 70b, 405b"):
        model_config(Model(preset="9b"), 4096)
    assert {"8b", "70b", "405b"} <= set(PRESETS)


def test_durations_are_readable():
    assert [duration(s) for s in (45, 600, 9000, 900_000)] == ["45 seconds", "10.0 minutes", "2.5 hours", "10.4 days"]


def _table(recipe: Recipe, machine: str):
    from rich.table import Table

    return next(line for line in plan_table(recipe, find_machine(machine)) if isinstance(line, Table))
