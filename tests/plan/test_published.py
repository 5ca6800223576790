"""The plan against what others measured. A tolerance that is wider than 15% is a known miss and says why."""

from pathlib import Path

import pytest

from puna.model.llama import PRESETS, count_parameters, flops_per_token
from puna.plan.choose import choose
from puna.plan.layout import Job, Layout, why_not
from puna.plan.machines import GIB, find_machine
from puna.plan.memory import training_memory
from puna.plan.published import GPU_HOURS, ROWS, TrainingRow
from puna.plan.speed import step_time
from puna.plan.training import Settings, make_plan, published_hours
from puna.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
MEMORY_ROWS = [row for row in ROWS if row.memory]
PREDICTED = [row for row in ROWS if row.tokens_per_second and not row.fitted and "cp" not in row.layout]
CONTEXT = [row for row in ROWS if row.tokens_per_second and "cp" in row.layout]


def name(row: TrainingRow) -> str:
    return f"{row.source}-{row.preset}-{row.seq_len}-{row.tokens_per_second or row.tflops}"


def setting(row: TrainingRow):
    job = Job(PRESETS[row.preset], row.seq_len, row.batch_rows, **(row.job or {}))
    layout, machine = Layout(**row.layout), find_machine(row.machine)
    assert why_not(layout, job, machine) is None
    return job, layout, machine


def speed(row: TrainingRow) -> float:
    """Tokens a second and processor."""
    job, layout, machine = setting(row)
    return job.batch_tokens / step_time(job, layout, machine).seconds / machine.count


@pytest.mark.parametrize("row", MEMORY_ROWS, ids=name)
def test_memory_is_within_15_percent_of_torchtitans_readings(row: TrainingRow):
    job, layout, _ = setting(row)
    assert row.memory is not None
    assert training_memory(job, layout).reserved / GIB == pytest.approx(row.memory, rel=0.15)


@pytest.mark.parametrize("row", PREDICTED, ids=name)
def test_speeds_that_were_not_fitted_are_within_15_percent(row: TrainingRow):
    assert speed(row) == pytest.approx(row.tokens_per_second, rel=0.15)


def test_enough_rows_were_predicted_and_few_fitted():
    assert len(PREDICTED) >= 9
    assert sum(row.fitted for row in ROWS) == 5  # one for each of five constants


@pytest.mark.parametrize("row", [row for row in ROWS if row.fitted and row.tokens_per_second], ids=name)
def test_fitted_rows_are_where_the_constants_say(row: TrainingRow):
    assert speed(row) == pytest.approx(row.tokens_per_second, rel=0.02)


@pytest.mark.parametrize("row", CONTEXT, ids=name)
def test_context_parallel_rows_are_counted_too_fast_by_at_most_55_percent(row: TrainingRow):
    """A known miss: torchtitan's ring attention loses what all-gathered keys, as counted here, do not."""
    assert row.tokens_per_second is not None
    assert 1.0 < speed(row) / row.tokens_per_second < 1.55


@pytest.mark.parametrize(
    ("row", "tolerance"),
    [(ROWS[0], 0.03), (ROWS[1], 0.01), (ROWS[2], 0.18)],
    ids=lambda value: name(value) if isinstance(value, TrainingRow) else None,
)
def test_the_papers_speeds(row: TrainingRow, tolerance: float):
    """Table 4, TFLOP/s with causal attention. The 128K row is a known miss: attention at FlashAttention-2's 35%."""
    config = PRESETS[row.preset]
    causal = (flops_per_token(config, row.seq_len) + flops_per_token(config, 0)) / 2
    assert row.tflops is not None
    assert speed(row) * causal / 1e12 == pytest.approx(row.tflops, rel=tolerance)


@pytest.mark.parametrize(
    ("row", "batch", "each"),
    [(ROWS[0], 32, 32), (ROWS[1], 16, 16), (ROWS[2], 16, 16)],
    ids=lambda value: name(value) if isinstance(value, TrainingRow) else None,
)
def test_table_4_has_16m_tokens_a_batch(row: TrainingRow, batch: int, each: int):
    job, layout, machine = setting(row)
    assert job.batch_tokens == 2**24
    assert job.batch_rows // layout.dp == batch
    assert layout.micro_batches(job) == each
    assert layout.bubble(job) == pytest.approx(15 / (8 * each))
    assert machine.count == layout.processors
    assert training_memory(job, layout).reserved + machine.processor.outside < machine.processor.memory


def recipe(preset: str) -> Recipe:
    return load_recipe(RECIPES / f"{preset}.toml")


def test_the_printed_data_parallel_degree_of_the_128k_row_cannot_be():
    row = ROWS[2]
    job, layout, machine = setting(row)
    printed = Layout(**{**row.layout, "dp": 4})
    assert layout.dp == 8
    assert "8,192 processors" in (why_not(printed, job, machine) or "")


def test_405b_hours_at_the_papers_rate():
    """3.8e25 FLOPs; 29.3M hours at 400 TFLOP/s and 90% effective time, 5% below the published 30.84M."""
    plan = make_plan(recipe("405b"), find_machine("2048 x 8 h100"), Settings(tflops=400, effective=0.9))
    assert plan.stages[0].flops_6nd == pytest.approx(3.8e25, rel=0.005)
    assert plan.gpu_hours == pytest.approx(29.3e6, rel=0.002)
    assert plan.gpu_hours / GPU_HOURS["405b"][1] == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize(("preset", "implied"), [("8b", 137), ("70b", 252)])
def test_8b_and_70b_hours_are_not_explained_and_not_bent(preset: str, implied: float):
    plan = make_plan(recipe(preset), find_machine("64 x 8 h100"))
    published = published_hours(plan)
    assert published is not None
    assert published[3] == pytest.approx(implied, rel=0.01)
    assert plan.gpu_hours < 0.65 * published[2]


def test_the_papers_layouts_are_what_the_planner_chooses():
    for row in ROWS[:3]:
        job, paper, machine = setting(row)
        best = choose(job, machine).best
        assert best.layout.degrees == paper.degrees
        assert best.layout.recompute == "none"


@pytest.mark.parametrize("preset", ["1b", "8b", "70b", "405b"])
def test_the_recipes_are_those_models(preset: str):
    assert recipe(preset).model.preset == preset
    assert count_parameters(PRESETS[preset]) > 0
