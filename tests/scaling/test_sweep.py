"""The sweep: which models it trains, that a run survives a kill, and what the stage makes of the runs."""

import csv
import fcntl
import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from puna.errors import PunaError
from puna.log import Log
from puna.machine import training_dtype
from puna.model.llama import PRESETS, Llama, count_parameters, flops_per_token
from puna.recipe import Recipe, Scaling, Training, parse_recipe
from puna.run import BY_NAME, only, to_toml, write_manifest
from puna.scaling import stage
from puna.scaling.figures import save_fit_figures
from puna.scaling.ladder import SweepRun, pick_shapes, plan_runs, power_law, shapes
from puna.scaling.sweep import make_run, read_result, run_sweep, sweep_runs
from puna.scaling.sweep_cli import list_runs, run_one
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.batches import rng
from puna.train.held_out import held_out_loss

KNOBS: dict[str, Any] = {
    "name": "small",
    "pretrain": {"mix": {"general": 0.75, "code": 0.25}},
    "scaling": {
        "budgets": [2e8, 1e9],
        "sizes": 2,
        "tokens_per_parameter": [0.05, 0.6],
        "seq_len": 32,
        "batch_tokens": [[2e8, 32], [1e9, 64]],
        "peak_lr": [[10_000, 0.02]],
        "held_out_tokens": 500,
        "precision": "fp32",
        "compile": "off",
        "workers": 1,
    },
}


def make_recipe(**scaling: Any) -> Recipe:
    return parse_recipe(KNOBS | {"scaling": KNOBS["scaling"] | scaling}, "test")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of random lower-case words in two parts, with a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    out = folder / "shards"
    out.mkdir()
    counts = {}
    for part, documents in {"general": 400, "code": 150, "held_out": 20}.items():
        random = rng(0, part)
        texts = (" ".join(random.choice(["llama", "puna", "ichu grass", "é"], 12)) for _ in range(documents))
        ids = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        np.concatenate([np.array(i, "<u2") for i in ids]).tofile(out / f"{part}.bin")
        counts[part] = {"documents": documents, "tokens": sum(map(len, ids))}
    held_out = counts.pop("held_out")
    (out / "shards.json").write_text(json.dumps({"dtype": "uint16", "parts": counts, "held_out": held_out}))
    for name in ("tokenizer", "shards"):
        write_manifest(folder / name, {"stage": name, "fingerprint": name, "metrics": {}})
    return {name: folder / name for name in ("tokenizer", "shards")}


# -- which models ------------------------------------------------------------------------------------------------------


def test_the_ladder_rises_and_passes_near_the_presets():
    ladder = shapes(32_768, 8192)
    sizes = [count_parameters(config) for config in ladder]
    assert sizes == sorted(set(sizes))
    costs = [flops_per_token(config, 8192) for config in ladder]
    assert costs == sorted(set(costs))
    assert max(b / a for a, b in pairwise(sizes) if a > 1e7) < 1.6
    for name in ("1m", "4m", "16m", "60m", "150m", "400m", "1b", "8b"):
        preset = PRESETS[name]
        [near] = [config for config in shapes(preset.vocab_size, 8192) if config.dim == preset.dim]
        assert count_parameters(near) == pytest.approx(count_parameters(preset), rel=0.25), name
        assert near.layers == pytest.approx(preset.layers, rel=0.25), name


@pytest.mark.parametrize(
    ("points", "x", "value"),
    [
        ([(1e3, 5.0)], 7.0, 5.0),
        ([(1.0, 2.0), (100.0, 0.02)], 10.0, 0.2),
        ([(100.0, 0.02), (1.0, 2.0)], 10_000.0, 2e-4),
        ([(1.0, 1.0), (10.0, 10.0), (100.0, 10.0)], 31.6, 10.0),
        ([(1.0, 1.0), (10.0, 10.0), (100.0, 10.0)], 0.1, 0.1),
        ([(6e18, 250_000.0), (1e22, 4_000_000.0)], math.sqrt(6e18 * 1e22), 1e6),
    ],
)
def test_power_laws_go_through_their_points(points: list[tuple[float, float]], x: float, value: float):
    assert power_law(points, x) == pytest.approx(value)
    for at, known in points:
        assert power_law(points, at) == pytest.approx(known)


def test_the_papers_sweep_has_the_papers_schedule():
    runs = plan_runs(Recipe(name="paper"), 128_256, {})
    assert len(runs) == 50
    for run in runs:
        assert run.flops == pytest.approx(run.budget, rel=0.02)
        assert 1e7 < run.params < 5e10
        assert 250_000 * 0.98 <= run.options.batch_tokens <= 4_000_000 * 1.02
        assert 1.8e-4 < run.options.peak_lr < 4.5e-4
        assert run.options.final_lr == 0.1
        assert run.options.warmup_steps == min(2000, round(0.1 * run.steps))
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize(("fit", "rows"), [(8192, 12), (6 * 32, 6), (5 * 32, 4), (32, 1), (1, 1)])
def test_a_batch_is_cut_into_equal_micro_batches(fit: int, rows: int):
    [run, *_] = plan_runs(make_recipe(batch_tokens=[[1, 12 * 32]], micro_tokens=fit), 272, {})
    assert (run.options.batch_rows, run.options.micro_rows) == (12, rows)


def test_sizes_spread_over_the_ratios_that_are_asked_for():
    knobs = Scaling(sizes=7, tokens_per_parameter=(5, 100))  # pyright: ignore[reportCallIssue]
    picked = pick_shapes(knobs, 1e20, 128_256)
    ratios = [1e20 / flops_per_token(config, 8192) / count_parameters(config) for config in picked]
    assert ratios == pytest.approx(np.geomspace(100, 5, 7), rel=0.25)
    one = knobs.model_copy(update={"sizes": 1})
    [middle] = pick_shapes(one, 1e20, 128_256)
    assert 1e20 / flops_per_token(middle, 8192) / count_parameters(middle) == pytest.approx(math.sqrt(500), rel=0.25)


def test_a_budget_too_small_for_its_sizes_says_what_to_change():
    with pytest.raises(PunaError, match=r"at 1e\+09 FLOPs .* raise the budget, lower scaling.sizes \(5\)"):
        plan_runs(parse_recipe({"name": "x", "scaling": {"budgets": [1e9]}}, "x"), 4096, {})


def test_a_runs_name_holds_what_its_result_depends_on():
    def names(**scaling: Any) -> list[str]:
        return [run.name for run in plan_runs(make_recipe(**scaling), 272, {"shards": "x"})]

    before = names()
    assert len(set(before)) == 4
    assert names(budgets=[2e8, 5e8, 1e9])[:2] == before[:2]
    assert names(budgets=[2e8, 5e8, 1e9])[4:] == before[2:]
    assert names(seeds=2)[::2] == before
    assert names(checkpoint_seconds=5, workers=2) == before
    assert names(micro_tokens=32) == before
    for change in ({"final_lr": 0.2}, {"held_out_tokens": 600}, {"max_epochs": 2}, {"peak_lr": [[1, 0.01]]}):
        assert not set(names(**change)) & set(before)
    assert not {run.name for run in plan_runs(make_recipe(), 272, {"shards": "y"})} & set(before)


def test_mixes_are_compared_at_every_budget_and_probes_at_the_largest():
    mixes = {"more-code": {"general": 0.5, "code": 0.5}, "general": {"general": 1.0}}
    recipe = make_recipe(budgets=[2e8, 5e8, 1e9], sizes=3, mixes=mixes, probes=["code", "math"])
    runs = plan_runs(recipe, 272, {})
    assert runs[:9] == plan_runs(make_recipe(budgets=[2e8, 5e8, 1e9], sizes=3), 272, {})
    of_mix = [run for run in runs if run.purpose == "mix:more-code"]
    assert [run.budget for run in of_mix] == [2e8, 5e8, 1e9]
    assert [run.config for run in of_mix] == [runs[i].config for i in (1, 4, 7)]
    assert {tuple(run.blends[0].mix.items()) for run in of_mix} == {(("general", 0.5), ("code", 0.5))}
    probes = [run for run in runs if run.purpose.startswith("probe")]
    assert [run.purpose for run in probes] == ["probe:"] * 2 + ["probe:code"] * 2 + ["probe:math"] * 2
    default = {"general": 0.75, "code": 0.25}
    for run in probes:
        first, last = run.blends
        assert (run.budget, run.options.schedule, run.options.final_lr) == (1e9, "linear", 0.0)
        assert first.mix == default
        assert abs(first.rows - last.rows) <= run.options.batch_rows
        assert first.rows + last.rows == run.steps * run.options.batch_rows
    assert probes[0].blends[1].mix == default
    assert probes[2].blends[1].mix == pytest.approx({"general": 0.525, "code": 0.475})
    assert probes[4].blends[1].mix == pytest.approx({"general": 0.525, "code": 0.175, "math": 0.3})
    assert probes[0].seed != probes[1].seed
    with pytest.raises(PunaError, match="give two mixes or more, and three budgets"):
        make_recipe(mixes=mixes)
    with pytest.raises(PunaError, match="must be shares that sum to 1"):
        make_recipe(mixes={"odd": {"general": 0.9}})


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_once_and_tells_its_held_out_loss(inputs: dict[str, Path], tmp_path: Path):
    run = sweep_runs(make_recipe(), inputs)[0]
    result = make_run(run, inputs, tmp_path, tmp_path / "log", quiet=True)
    assert result["loss"] < 4.5 < math.log(272)
    assert result["failed"] is None
    (tmp_path / run.name / "step-000000001.safetensors").touch()  # as a kill just before the end leaves it
    assert make_run(run, inputs, tmp_path, tmp_path / "nowhere", quiet=True) == result
    assert not (tmp_path / "nowhere").exists()
    files = sorted(path.name for path in (tmp_path / run.name).iterdir())
    assert files == [".lock", "result.json"]
    steps = (tmp_path / "log" / "scaling" / f"{run.name}.jsonl").read_text().splitlines()
    assert len(steps) == run.steps
    written = read_result(run, tmp_path) or {}
    assert written == result
    assert {name: written[name] for name in run.describe()} == run.describe()
    assert written["flops_6nd"] == 6 * run.params * run.tokens


def test_held_out_loss_is_the_mean_over_tokens_and_bits_are_over_bytes(inputs: dict[str, Path]):
    tokenizer = Tokenizer.load(inputs["tokenizer"])
    [config] = pick_shapes(make_recipe(sizes=1).scaling, 1e9, tokenizer.vocab_size)
    model = Llama(config).init_weights(torch.Generator().manual_seed(1))
    cpu = torch.device("cpu")
    options = Training(seq_len=32, precision="fp32")  # pyright: ignore[reportCallIssue]
    scores = held_out_loss(model, tokenizer, inputs["shards"], 10**9, cpu, options)
    text = np.fromfile(inputs["shards"] / "held_out.bin", "<u2").astype(np.int64)
    rows = (len(text) - 1) // 32
    nats = tokens = size = 0.0
    for row in range(rows):
        ids = torch.from_numpy(text[row * 32 : row * 32 + 33])
        starts = (ids[:-1] == tokenizer.bos_id).cumsum(0)
        logits = model(ids[None, :-1], documents=starts[None])[0]
        for place, label in enumerate(ids[1:].tolist()):
            if label != tokenizer.bos_id:
                nats += F.cross_entropy(logits[place], torch.tensor(label)).item()
                tokens += 1
                size += 0 if label == tokenizer.eos_id else len(tokenizer.decode_bytes([label]))
    assert scores["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    with pytest.raises(PunaError, match=r"raise held_out_tokens"):
        held_out_loss(model, tokenizer, inputs["shards"], 20, cpu, options)
    assert training_dtype(options, cpu) == torch.float32


def test_what_is_wrong_with_the_data_is_no_verdict_on_the_model(inputs: dict[str, Path], tmp_path: Path):
    run = sweep_runs(make_recipe(max_epochs=0.01), inputs)[0]
    with pytest.raises(PunaError, match=r"raise max_epochs .* \(in a sweep: scaling.budgets and scaling.max_epochs\)"):
        make_run(run, inputs, tmp_path, tmp_path, quiet=True)
    assert read_result(run, tmp_path) is None


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_result(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = sweep_runs(make_recipe(checkpoint_seconds=1e-9), inputs)[0]
    make_run(run, inputs, tmp_path / "straight", tmp_path, quiet=True)
    figures = Log.figures

    def stop(self: Log, step: int, **values: float) -> None:
        if step == run.steps // 2:
            raise Killed
        figures(self, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(Log, "figures", stop)
        with pytest.raises(Killed):
            make_run(run, inputs, tmp_path / "killed", tmp_path, quiet=True)
    [checkpoint] = (tmp_path / "killed" / run.name).glob("step-*.safetensors")
    assert int(checkpoint.stem.removeprefix("step-")) == run.steps // 2 - 1
    assert read_result(run, tmp_path / "killed") is None
    seen: list[int] = []
    monkeypatch.setattr(Log, "figures", lambda self, step, **values: seen.append(step))
    make_run(run, inputs, tmp_path / "killed", tmp_path, quiet=True)
    assert seen == list(range(run.steps // 2, run.steps + 1))
    straight, killed = (tmp_path / name / run.name / "result.json" for name in ("straight", "killed"))
    assert straight.read_bytes() == killed.read_bytes()


def test_a_run_that_another_process_makes_is_left_to_it(inputs: dict[str, Path], tmp_path: Path):
    run = sweep_runs(make_recipe(), inputs)[0]
    (tmp_path / run.name).mkdir()
    with (tmp_path / run.name / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(PunaError, match="is being made by another process"):
            make_run(run, inputs, tmp_path, tmp_path, quiet=True)


def test_a_sweep_without_its_shards_says_so(inputs: dict[str, Path], tmp_path: Path):
    with pytest.raises(PunaError, match="needs shards, not made yet"):
        sweep_runs(make_recipe(), inputs | {"shards": tmp_path / "none"})


def test_runs_are_listed_and_made_one_by_one(inputs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    recipe = make_recipe()
    for name, folder in inputs.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe.model_dump(mode="json", exclude_none=True)))
    here = {name: tmp_path / name for name in inputs}
    runs = sweep_runs(only(recipe, BY_NAME["scaling"].knobs), here)
    list_runs(tmp_path)
    listed = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [line[0] for line in listed if "isoflop" in line] == ["0", "1", "2", "3"]
    run_one(tmp_path, 1)
    assert [read_result(run, stage.sweep_folder(here)) is not None for run in runs] == [False, True, False, False]
    assert "held-out loss" in capsys.readouterr().err
    with pytest.raises(PunaError, match=r"there is no run 4; the sweep of .* has the runs 0 to 3"):
        run_one(tmp_path, 4)


# -- the stage ---------------------------------------------------------------------------------------------------------


def law(params: float, tokens: float) -> float:
    return 1.7 + 60 / params**0.36 + 90 / tokens**0.33


BUDGETS = [1e17, 1e18, 1e19, 1e20]


@pytest.fixture
def made(inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Path]:
    """A recipe whose runs all have results already, from a known law with a little noise."""
    recipe = make_recipe(
        budgets=BUDGETS, sizes=6, tokens_per_parameter=[3, 150], seq_len=32, batch_tokens=[[1e17, 32_000]]
    )
    monkeypatch.setattr(stage, "sweep_folder", lambda inputs: tmp_path / "sweep")
    monkeypatch.setattr(stage, "save_fit_figures", lambda *args: None)  # seconds each; one test draws them
    for number, run in enumerate(sweep_runs(recipe, inputs)):
        noise = float(rng(0, "noise", number).normal(0, 0.002))
        loss = law(run.flops / 6 / run.tokens, run.tokens) * math.exp(noise)
        write_result(tmp_path / "sweep", run, loss)
    return recipe, tmp_path


def write_result(folder: Path, run: SweepRun, loss: float | None, failed: str | None = None) -> None:
    (folder / run.name).mkdir(parents=True)
    bits = loss and loss / math.log(2) / 3.1
    result = run.describe() | {"failed": failed, "loss": loss, "bits_per_byte": bits}
    (folder / run.name / "result.json").write_text(json.dumps(result))


def run_stage(recipe: Recipe, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    out.mkdir()
    return stage.run(recipe, inputs, out, Log(out.parent / "log", "scaling"))


def test_the_stage_finds_the_law_and_forecasts_the_largest_budget(inputs: dict[str, Path], made: tuple[Recipe, Path]):
    recipe, folder = made
    metrics = run_stage(recipe, inputs, folder / "out")
    rows = list(csv.DictReader((folder / "out" / "points.csv").read_text().splitlines()))
    assert len(rows) == 24 == metrics["scaling.runs"]["value"]
    for row in rows:
        assert float(row["flops"]) == pytest.approx(6 * float(row["active_params"]) * float(row["tokens"]))
        assert float(row["active_params"]) != float(row["params"])
    exponent = metrics["scaling.tokens_exponent"]
    assert exponent["low"] < 0.36 / (0.36 + 0.33) < exponent["high"]
    assert metrics["scaling.forecast.error"]["value"] < 0.02
    forecast = json.loads((folder / "out" / "forecast.json").read_text())
    assert forecast["budget"] == 1e20
    assert forecast["fitted_runs"] == 18
    assert len(forecast["runs"]) == 6
    assert sum(run["low"] < run["loss"] < run["high"] for run in forecast["runs"]) >= 4
    lowest = forecast["lowest"]
    assert lowest["low"] < lowest["loss"] < lowest["high"]
    assert lowest["forecast"] == pytest.approx(lowest["loss"], rel=0.02)
    fit = json.loads((folder / "out" / "fit.json").read_text())
    assert [plan["flops"] for plan in fit["plan"]] == [1e20, 1e21, 1e22]
    for plan in fit["plan"]:
        active = plan["flops"] / 6 / plan["tokens"]
        best = 0.36 * 60 / active**0.36, 0.33 * 90 / plan["tokens"] ** 0.33  # equal at the optimum
        assert best[0] == pytest.approx(best[1], rel=0.35)
        assert plan["loss"]["low"] < law(active, plan["tokens"]) * 1.01
        assert plan["loss"]["high"] > law(active, plan["tokens"]) * 0.99


def test_two_makings_are_byte_identical(
    inputs: dict[str, Path], made: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
):
    recipe, folder = made
    monkeypatch.setattr(stage, "save_fit_figures", save_fit_figures)
    for name in "ab":
        run_stage(recipe, inputs, folder / name)
    assert {path.suffix for path in (folder / "a").iterdir()} == {".csv", ".json", ".svg", ".png"}
    for path in sorted((folder / "a").iterdir()):
        assert path.read_bytes() == (folder / "b" / path.name).read_bytes(), path.name


def test_failed_runs_are_left_out_and_named(inputs: dict[str, Path], made: tuple[Recipe, Path]):
    recipe, folder = made
    run = sweep_runs(recipe, inputs)[3]
    (folder / "sweep" / run.name / "result.json").unlink()
    (folder / "sweep" / run.name).rmdir()
    write_result(folder / "sweep", run, None, "its loss is not finite; lower peak_lr")
    metrics = run_stage(recipe, inputs, folder / "out")
    assert metrics["scaling.runs"]["value"] == 23
    fit = json.loads((folder / "out" / "fit.json").read_text())
    assert fit["failed"] == {run.name: "its loss is not finite; lower peak_lr"}


def test_mixes_and_probes_are_judged(inputs: dict[str, Path], made: tuple[Recipe, Path]):
    recipe, folder = made
    mixes = {"good": {"general": 1.0}, "bad": {"code": 1.0}}
    knobs = recipe.scaling.model_dump(mode="json") | {"mixes": mixes, "probes": ["code"]}
    recipe = make_recipe(**knobs)
    effect = {"mix:good": 0.95, "mix:bad": 1.0, "probe:code": 0.97, "probe:": 1.0}
    for number, run in enumerate(run for run in sweep_runs(recipe, inputs) if run.purpose in effect):
        noise = math.exp(float(rng(0, "data", number).normal(0, 0.001)))
        write_result(folder / "sweep", run, effect[run.purpose] * law(run.flops / 6 / run.tokens, run.tokens) * noise)
    metrics = run_stage(recipe, inputs, folder / "out")
    assert metrics["scaling.runs"]["value"] == 24
    data = json.loads((folder / "out" / "data.json").read_text())
    assert [each["mix"] for each in data["mixes"]["ranking"]] == ["good", "bad"]
    assert data["mixes"]["ranking"][0]["best"] > 0.9
    assert data["probes"]["code"]["helps"] is True
    assert data["probes"]["code"]["relative"] == pytest.approx(-0.03, abs=0.005)
    purposes = [row["purpose"] for row in csv.DictReader((folder / "out" / "points.csv").read_text().splitlines())]
    assert len(purposes) == 24 + 8 + 4


def test_a_sweep_makes_what_is_missing_side_by_side(inputs: dict[str, Path], tmp_path: Path):
    """Two processes, one run that is there already and one whose loss is not finite."""
    good = sweep_runs(make_recipe(budgets=[2e8], sizes=2), inputs)
    bad = sweep_runs(make_recipe(budgets=[2e8], sizes=1, peak_lr=[[1, 1e30]]), inputs)
    write_result(tmp_path, good[0], 1.0)
    run_sweep([*good, *bad], inputs, tmp_path, 2, Log(tmp_path / "log", "scaling"))
    results = [read_result(run, tmp_path) or {} for run in [*good, *bad]]
    assert [result["failed"] is None for result in results] == [True, True, False]
    assert results[0]["loss"] == 1.0
    assert "are not finite; lower peak_lr" in results[2]["failed"]
    alone = make_run(good[1], inputs, tmp_path / "alone", tmp_path, quiet=True)
    assert results[1]["loss"] == alone["loss"]
