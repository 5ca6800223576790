"""Layouts, memory, failures and the command line of the planner."""

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from puna.cli import app
from puna.errors import PunaError
from puna.machine import peak_flops
from puna.model.llama import PRESETS, Llama, LlamaConfig, count_parameters, flops_per_token
from puna.plan.calibrate import calibrate, shrink
from puna.plan.choose import choose
from puna.plan.layout import Job, Layout, layouts, parse_layout, why_not
from puna.plan.machines import GIB, PROCESSORS, Machine, find_machine
from puna.plan.memory import in_flight, kept, layer_parameters, training_memory
from puna.plan.reliability import best_interval, reliability
from puna.plan.serve import kv_bytes, serving, weight_bytes
from puna.plan.speed import step_time, step_volume
from puna.plan.table import duration, plan_lines
from puna.plan.training import Settings, as_json, make_plan
from puna.pretrain.pretrain import model_config
from puna.recipe import Model, Recipe, Training
from puna.train.optimizer import make_optimizer

SMALL = LlamaConfig(300, dim=32, layers=1, heads=2, kv_heads=1, ffn_dim=64)
JOB_405B = Job(PRESETS["405b"], 8192, 2048)


@pytest.mark.parametrize(
    ("text", "count", "node"),
    [
        ("h100", 1, 1),
        ("8 x h100", 8, 8),
        ("8xH100", 8, 8),
        ("64 x 8 H100", 512, 8),
        ("2,048 x 8 h100", 16_384, 8),
        ("4 x 2 RTX 4090", 8, 2),
        ("1 x RTX 4090", 1, 1),
        ("16384 x h100", 16_384, 8),
        ("8 x h100-500w", 8, 8),
    ],
)
def test_machines_are_found(text: str, count: int, node: int):
    machine = find_machine(text)
    assert (machine.count, machine.processor.node) == (count, node)


@pytest.mark.parametrize("text", ["abacus", "8 x abacus", "x h100", "0.5 x h100", "0 x h100", "", "12 x h100"])
def test_unknown_machines_are_refused(text: str):
    with pytest.raises(PunaError, match=r"h100|H100"):
        find_machine(text)


@pytest.mark.parametrize("text", ["this", "this laptop"])
def test_this_machine_has_a_measured_peak(text: str):
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e13
    assert find_machine(text).count >= 1


def test_every_data_sheet_is_plausible():
    for p in PROCESSORS.values():
        assert 0.2 < p.matmul < 0.9
        assert 0.2 < p.attention <= p.matmul * 1.1
        assert p.link >= p.network
        assert p.fp8 is None or p.fp8 == pytest.approx(2 * p.bf16, rel=0.05)


def test_state_bytes_are_those_of_the_training_loop():
    model = Llama(SMALL).init_weights()
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer = make_optimizer(model, Training())  # pyright: ignore[reportCallIssue]
    optimizer.step()
    moments = sum(t.nbytes for s in optimizer.state.values() for k, t in s.items() if k != "step")
    weights = sum(p.nbytes for p in model.parameters())
    planned = training_memory(Job(SMALL, 8, 1), Layout())
    assert planned.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert planned.optimizer == moments
    assert planned.weights == weights * 1.5  # and a bf16 copy


def test_activations_are_those_that_autograd_keeps():
    """What the model's backward holds, by torch's own hooks, in bf16 elements a token and layer."""
    config = dataclasses.replace(SMALL, dim=64, heads=4, kv_heads=2, ffn_dim=192, layers=3)
    model, tokens = Llama(config).init_weights().to(torch.bfloat16), torch.randint(300, (1, 64))

    def saved(layers: int) -> int:
        held: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        model.layers = torch.nn.ModuleList(list(model.layers)[:layers])
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = model.hidden(tokens)
        assert output.requires_grad
        return sum(size for pointer, size in held.items() if pointer not in own)

    a_layer = (saved(3) - saved(2)) / 64
    # eager keeps fp32 copies of both norms' inputs, of the rotated q and k, and the silu beside them
    assert kept(config, "none") < a_layer < 2.2 * kept(config, "none")


def test_fsdp_levels_shard_what_they_say():
    job = Job(PRESETS["8b"], 8192, 512)
    memories = [training_memory(job, Layout(dp=8, shard=level)) for level in range(4)]
    assert [m.total for m in memories] == sorted((m.total for m in memories), reverse=True)
    assert memories[1].optimizer == memories[0].optimizer / 8
    assert memories[2].gradients == memories[0].gradients / 8
    assert memories[3].weights == pytest.approx(memories[0].weights / 6 * 4 / 8)


def test_recomputation_trades_memory_for_time():
    job, machine = Job(PRESETS["8b"], 8192, 512), find_machine("8 x h100")
    choices = [Layout(dp=8, shard=3, recompute=r) for r in ("none", "selective", "full")]
    memory = [training_memory(job, layout).total for layout in choices]
    seconds = [step_time(job, layout, machine).seconds for layout in choices]
    assert memory == sorted(memory, reverse=True)
    assert seconds == sorted(seconds)


def test_pipeline_schedules_keep_what_the_formulas_say():
    assert in_flight(Layout(pp=16, dp=64), JOB_405B) == 16  # 1F1B
    assert in_flight(Layout(pp=16, dp=64, stages=8), JOB_405B) == (2 * 15 + 7 * 16 + 1) / 8
    assert Layout(pp=16, dp=128).bubble(JOB_405B) == 15 / 16
    assert Layout(pp=16, dp=128, stages=8).bubble(JOB_405B) == 15 / 128


def test_communication_of_one_block():
    """TP moves [tokens, dim] in bf16 eight times a layer, FSDP the weights once and fp32 gradients once."""
    c = PRESETS["8b"]
    received = step_volume(Job(c, 8192, 4), Layout(tp=2, dp=2, shard=1))
    assert received.tp == 2 * 32 * 8 * 2 * 8192 * 4096 / 2
    assert received.dp == pytest.approx(6 * (32 * layer_parameters(c) + 2 * c.vocab_size * c.dim) / 2 / 2)
    assert received.pp == received.cp == 0


@pytest.mark.parametrize(
    ("layout", "match"),
    [
        (Layout(8, 1, 16, 64), "dp=128 would fill it"),
        (Layout(16, 1, 8, 128), "KV heads"),
        (Layout(8, 1, 16, 128, stages=16), "126 layers"),
        (Layout(1, 1, 1, 16_384), "batch_rows"),
        (Layout(8, 16, 128, 1, shard=1), None),
        (Layout(8, 1, 1, 2048, stages=2), "pp above 1"),
        (Layout(8, 1, 32, 64, stages=2, micro=32), "in a row"),
    ],
)
def test_impossible_layouts_say_why(layout: Layout, match: str | None):
    reason = why_not(layout, dataclasses.replace(JOB_405B, seq_len=131_072), find_machine("2048 x 8 h100"))
    assert reason is None if match is None else match in (reason or "")


@pytest.mark.parametrize("text", ["tp", "tp=x", "tp=0", "shard=4", "ep=2", "recompute=some", ""])
def test_layouts_that_cannot_be_read(text: str):
    with pytest.raises(PunaError, match="layout"):
        parse_layout(text)


def test_part_of_a_layout_can_be_given():
    given = parse_layout("tp=4, recompute=full")
    assert given == {"tp": 4, "recompute": "full"}
    machine = find_machine("64 x 8 h100")
    found = list(layouts(Job(PRESETS["70b"], 8192, 1024), machine, given))
    assert found
    assert {layout.tp for layout in found} == {4}
    assert all(why_not(layout, Job(PRESETS["70b"], 8192, 1024), machine) is None for layout in found)


def test_a_model_that_fits_nowhere_says_what_would_do():
    choice, (line,), _ = choose(Job(PRESETS["8b"], 8192, 512), find_machine("1 x rtx4090"))
    assert not choice.fits
    assert "8 x RTX 4090 would do" in line


def test_a_small_batch_fills_a_part_of_the_machine():
    choice, lines, _ = choose(Job(PRESETS["1m"], 256, 4), find_machine("64 x 8 h100"))
    assert choice.machine.count < 512
    assert choice.fits
    assert lines[0].startswith("batch: 4 rows fill")


def test_more_cores_than_rows():
    core = find_machine("this").processor
    recipe = Recipe(name="x", model=Model(preset="1m"))
    pretrain = recipe.pretrain.model_copy(update={"seq_len": 256, "batch_rows": 4, "micro_rows": 2, "tokens": 10**6})
    plan = make_plan(recipe.model_copy(update={"pretrain": pretrain}), Machine(core, 48))
    assert 1 <= plan.stages[0].choice.machine.count <= 2


def test_the_choice_is_the_fastest_that_fits_comfortably():
    job, machine = Job(PRESETS["70b"], 8192, 1024), find_machine("64 x 8 h100")
    best, lines, others = choose(job, machine)
    assert best.layout.degrees not in {other.layout.degrees for other in others}
    assert all(other.fits for other in others)
    assert [o.expected for o in others] == sorted(o.expected for o in others)
    assert best.fits_well
    for layout in layouts(job, machine):
        if layout.cp == 1 and training_memory(job, layout).reserved < 0.9 * machine.processor.memory:
            assert step_time(job, layout, machine).seconds * 1.021 > best.step.seconds
    assert any(line.startswith("memory") for line in lines)


PARAMETERS_405B = count_parameters(PRESETS["405b"])


def test_54_days_at_the_published_rates():
    """Section 3.3.4: 419 unexpected and 47 planned interruptions, and over 90% effective time."""
    busy = 54 * 86_400
    faults = reliability(PARAMETERS_405B, 16_384, busy)
    faults = reliability(PARAMETERS_405B, 16_384, busy * faults.effective)  # 54 days of wall time
    assert faults.unexpected == pytest.approx(419, rel=1e-9)
    assert faults.planned == pytest.approx(47, rel=1e-9)
    assert faults.mean_time_between / 3600 == pytest.approx(3.09, abs=0.01)
    assert 0.90 < faults.effective < 0.95


@pytest.mark.parametrize(("write", "between"), [(2.4, 11_135.0), (60.0, 3600.0), (600.0, 3600.0)])
def test_the_interval_loses_least_in_a_simulation(write: float, between: float):
    """Exponential failures, work lost back to the last checkpoint: expected time for a unit of work, in closed form."""

    def time_for(interval: float) -> float:
        return between * math.expm1((interval + write) / between) / interval

    best = best_interval(write, between)
    around = np.geomspace(best / 4, best * 4, 4001)
    least = min(time_for(interval) for interval in around)
    assert time_for(best) < 1.001 * least


def test_no_failures_and_no_interval():
    faults = reliability(10**9, 8, 86_400.0, failures_per_gpu_day=0)
    assert faults.unexpected == 0
    assert faults.interval == math.inf
    assert faults.effective > 0.999


@pytest.mark.parametrize(
    ("precision", "machine", "fits"),
    [("bf16", "1 x 8 h100", False), ("bf16", "2 x 8 h100", True), ("fp8", "1 x 8 h100", True)],
)
def test_405b_is_served_in_bf16_on_two_nodes_and_in_fp8_on_one(precision: Any, machine: str, fits: bool):
    """Section 6."""
    plan = serving(PRESETS["405b"], find_machine(machine), precision, 8192, 8)
    assert plan.fits == fits
    assert plan.smallest == ("16 x H100" if precision == "bf16" else "8 x H100")


def test_serving_sizes_and_limits():
    assert weight_bytes(PRESETS["405b"], "bf16") == pytest.approx(812e9, rel=1e-3)
    assert weight_bytes(PRESETS["405b"], "fp8") == pytest.approx(487e9, rel=1e-3)
    assert [kv_bytes(PRESETS[name]) for name in ("8b", "70b", "405b")] == [131_072, 327_680, 516_096]
    h200 = find_machine("h200")
    limits = {p: serving(PRESETS["8b"], h200, p, 1024, 256) for p in ("bf16", "fp8")}
    assert limits["bf16"].decode_limit_one == pytest.approx(320, abs=1)
    assert limits["fp8"].decode_limit_one == pytest.approx(493, abs=1)
    assert limits["bf16"].decode_limit == pytest.approx(24_900, rel=0.001)


def test_serving_refuses_what_cannot_be():
    with pytest.raises(PunaError, match="no FP8"):
        serving(PRESETS["8b"], find_machine("a100"), "fp8", 8192, 1)
    with pytest.raises(PunaError, match="131,072"):
        serving(PRESETS["8b"], find_machine("h100"), "bf16", 200_000, 1)


def test_an_unknown_preset_names_the_known():
    with pytest.raises(PunaError, match="8b, 70b, 405b"):
        model_config(Model(preset="9b"), 4096)


def test_prices_energy_and_given_figures():
    recipe = Recipe(name="x", model=Model(preset="8b"))
    settings = Settings(tflops=400, effective=0.5, price_per_gpu_hour=2.0, price_per_kwh=0.1, pue=1.25)
    plan = as_json(make_plan(recipe, find_machine("8 x h100"), settings))
    hours = sum(s["flops_6nd"] for s in plan["stages"]) / 400e12 / 3600 / 0.5
    assert plan["gpu_hours"] == pytest.approx(hours)
    assert plan["price_gpus"] == pytest.approx(2 * hours)
    assert plan["kwh"] == pytest.approx(0.7 * hours * 1.25)
    assert plan["price_energy"] == pytest.approx(0.1 * plan["kwh"])
    with pytest.raises(PunaError, match="effective"):
        make_plan(recipe, find_machine("8 x h100"), Settings(effective=1.5))


def test_shrinking_for_a_short_measurement():
    config, seq_len = shrink(PRESETS["8b"], 1, 8192, 1e11, 12 * GIB)
    assert (config.layers, seq_len) == (2, 256)
    assert shrink(PRESETS["1m"], 2, 256, 1e11, 12 * GIB) == (PRESETS["1m"], 256)


def test_a_calibrated_plan_uses_the_measured_speed():
    recipe = Recipe(name="x", model=Model(preset="1m", dim=32, layers=1, heads=2, kv_heads=1, ffn_dim=64))
    recipe = recipe.model_copy(
        update={
            "tokenizer": recipe.tokenizer.model_copy(update={"vocab_size": 300}),
            "pretrain": recipe.pretrain.model_copy(
                update={"seq_len": 32, "batch_rows": 2, "tokens": 64_000, "compile": "off", "precision": "fp32"}
            ),
        }
    )
    machine = find_machine("this")
    machine = calibrate(recipe, Machine(machine.processor, 1))
    plan = make_plan(recipe, machine)
    p, config = machine.processor, plan.config
    assert p.source.startswith("measured just now")
    assert p.mfu is not None
    expected = 64_000 * flops_per_token(config, 32) / (p.bf16 * p.mfu)
    assert plan.stages[0].seconds == pytest.approx(expected)


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *words])
    if isinstance(result.exception, PunaError):
        return 1, str(result.exception)
    return result.exit_code, result.stdout


def test_json_is_one_object(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "8b"\n')
    code, out = run(str(path), "--machine", "8 x h100", "--json", "pretrain.tokens=1_000_000_000")
    plan = json.loads(out)
    assert code == 0
    assert [stage["stage"] for stage in plan["stages"]] == ["pretrain", "sft", "dpo"]
    assert plan["stages"][0]["fits"]
    code, out = run(str(path), "--machine", "8 x h100", "--failures", "0", "--json")
    assert "Infinity" not in out
    assert json.loads(out)["reliability"]["interval"] is None
    code, out = run(str(path), "--machine", "8 x h100", "--serve", "--json", "--precision", "fp8")
    assert json.loads(out)["fits"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--precision", "int4"], "bf16 or fp8"),
        (["--serve", "--precision", "int4"], "bf16, fp8, int8"),
        (["--calibrate", "--machine", "h100"], "this machine"),
        (["--machine", "a100", "--precision", "fp8"], "no FP8"),
        (["--machine", "h100", "--layout", "tp=2,cp=1,pp=1,dp=1"], "2 processors"),
        (["pretrain"], "no stages"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, words: list[str], match: str):
    path = tmp_path / "tiny.toml"
    path.write_text('[model]\npreset = "1m"\n')
    code, message = run(str(path), *words)
    assert code == 1
    assert match in message


def test_durations_are_readable():
    assert [duration(s) for s in (0.5, 45, 600, 9000, 900_000)] == [
        "0.5 seconds", "45 seconds", "10.0 minutes", "2.5 hours", "10.4 days",
    ]  # fmt: skip


@pytest.mark.parametrize("machine", ["1 x rtx4090", "2048 x 8 h100", "this"])
def test_lines_for_the_terminal_render(machine: str):
    plan = make_plan(Recipe(name="x", model=Model(preset="70b")), find_machine(machine))
    console = Console(width=120, record=True, file=io.StringIO())
    for line in plan_lines(plan):
        console.print(line, highlight=False)
    text = console.export_text()
    assert "70,553,706,496 parameters" in text
    assert ("does not fit" in text) == (machine != "2048 x 8 h100")
