"""The commands: what they print, write and refuse."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from puna.errors import PunaError
from puna.scaling.advise import budget_flops
from puna.scaling.cli import app


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def table(truth, tmp_path) -> Path:
    points = truth.runs(noise=0.002)
    path = tmp_path / "points.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["size", "data", "FLOPs", "loss"])
        writer.writerows(zip(points.params, points.tokens, points.flops, points.loss))
    return path


def test_fit_prints_one_json_object(table, truth):
    columns = ("params=size", "tokens=data")
    result = json.loads(call("fit", table, *columns, "--flops", 1e23, "--bootstraps", 50, "--json"))
    assert result["preferred"] == "isoflop"
    assert set(result["approaches"]) == {"isoflop", "parametric", "envelope"}
    law = result["approaches"]["parametric"]["law"]
    assert law["E"]["low"] <= 1.7 <= law["E"]["high"]
    for row in result["recommendations"]:
        assert row["flops"] == 1e23
        assert row["tokens"]["low"] <= row["tokens"]["value"] <= row["tokens"]["high"]
    assert len(result["leave_one_budget_out"]["isoflop"]) == 4
    assert isinstance(result["warnings"], list)


def test_fit_writes_the_same_bytes_twice(table, tmp_path):
    columns = ("params=size", "tokens=data")
    for name in ("one", "two"):
        call("fit", table, *columns, "--flops", 1e23, "--bootstraps", 30, "--out", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    figures = [f"{name}.{kind}" for name in ("frontier", "isoflop", "residuals") for kind in ("png", "svg")]
    assert files == sorted(["fit.json", "recommendations.csv", *figures])
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = list(csv.DictReader((tmp_path / "one" / "recommendations.csv").read_text().splitlines()))
    assert [row["approach"] for row in rows] == ["isoflop", "parametric", "envelope"]
    saved = call("plan", "--fit", tmp_path / "one" / "fit.json", "--flops", 1e23, "--json")
    assert json.loads(saved)["recommended"]["tokens"]["value"] == pytest.approx(float(rows[0]["tokens"]))


def test_fit_as_tables(table):
    said = call("fit", table, "params=size", "tokens=data", "--flops", 1e25, "--bootstraps", 30)
    assert "isoflop *" in said
    assert "1e25" in said


def test_plan_from_points_has_intervals(table):
    words = ("--points", table, "--column", "params=size", "--column", "tokens=data", "--flops", 1e23)
    result = json.loads(call("plan", *words, "--served-tokens", 1e13, "--tokens-per-param", 20, "--json"))
    tokens = result["recommended"]["tokens"]
    assert tokens["low"] < tokens["value"] < tokens["high"]
    assert result["serving"]["model"]["params"] < result["recommended"]["params"]["value"]
    assert "20 tokens a parameter" in result["alternatives"]


def test_plan_of_a_cluster_by_a_published_law():
    result = json.loads(call("plan", "--gpus", 512, "--days", 20, "--json"))
    assert result["flops"] == pytest.approx(512 * 20 * 86400 * 400e12 * 0.9)
    assert result["flops"] == budget_flops(512, 20)
    assert "figure 3" in result["source"]
    flagship = json.loads(call("plan", "--flops", "3.8e25", "--law", "llama3", "--json"))["recommended"]
    assert flagship["tokens"]["value"] == pytest.approx(16.3e12, rel=0.01)
    assert flagship["tokens"]["low"] is None
    assert "389B" in call("plan", "--flops", "3.8e25")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan",), "--flops 3.8e25, or as --gpus"),
        (("plan", "--flops", "1e20", "--gpus", "8", "--days", "1"), "--flops 3.8e25, or as --gpus"),
        (("plan", "--flops", "-1"), "positive|training budget"),
        (("plan", "--gpus", "8", "--days", "1", "--effective", "90"), "share of the time"),
        (("plan", "--flops", "1e20", "--law", "gpt"), "there are llama3"),
        (("plan", "--flops", "1e20", "--law", "llama3", "--fit", "x.json"), "exclude each other"),
        (("plan", "--flops", "1e20", "--fit", "x.json"), "no fit at x.json"),
        (("fit", "none.csv"), "no table at"),
        (("fit", "none.csv", "params"), "NAME=COLUMN"),
        (("fit", "none.csv", "size=x"), "no such quantity: size"),
    ],
)
def test_mistakes_are_named(words, said):
    with pytest.raises(PunaError, match=said):
        call(*words)


def test_a_broken_fit_file(tmp_path):
    (tmp_path / "fit.json").write_text('{"approaches": 3}')
    with pytest.raises(PunaError, match="is not a fit"):
        call("plan", "--flops", "1e20", "--fit", tmp_path / "fit.json")


def task_table(path: Path) -> Path:
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["run", "params", "tokens", "bpb", "acc"])
        for params in (2e8, 4e8, 8e8, 1.6e9):
            for ratio in (20, 60, 200):
                for part in np.linspace(0.1, 1, 8):
                    tokens = ratio * params * part
                    loss = 0.4 + 60 / params**0.28 + 40 / tokens**0.25
                    writer.writerow(
                        [f"{params:g}x{ratio}", params, tokens, loss, 1 - 0.75 / (1 + np.exp(6 * (0.8 - loss)))]
                    )
        writer.writerow(["older model", "", "", 0.6, 1 - 0.75 / (1 + np.exp(6 * 0.2))])
    return path


def test_forecast(tmp_path):
    table = task_table(tmp_path / "task.csv")
    words = ("forecast", table, "--params", 1.3e10, "--tokens", 5e12, "--bootstraps", 30)
    result = json.loads(call(*words, "--json", "--out", tmp_path))
    true = 0.4 + 60 / 1.3e10**0.28 + 40 / 5e12**0.25
    assert result["loss"]["value"] == pytest.approx(true, rel=0.03)
    assert result["backtest"]
    assert (tmp_path / "forecast.svg").stat().st_size > 10_000
    assert (tmp_path / "forecast.json").read_text() == json.dumps(result, indent=2) + "\n"
    assert "accuracy 0." in call(*words)
    linear = json.loads(call("forecast", table, "--flops", 1e22, "--law", "linear", "--bootstraps", 30, "--json"))
    assert linear["step1"]["slope_per_log_flops"] < 0


def test_forecast_mistakes(tmp_path):
    table = task_table(tmp_path / "task.csv")
    with pytest.raises(PunaError, match="needs params and tokens"):
        call("forecast", table, "--flops", 1e22)
    with pytest.raises(PunaError, match="choose power or linear"):
        call("forecast", table, "--flops", 1e22, "--law", "cubic")
    (tmp_path / "billions.csv").write_text("run,params,tokens,bpb,acc\na,7,1e9,1.0,0.5\nb,13,2e9,0.9,0.6\n")
    with pytest.raises(PunaError, match="plain units"):
        call("forecast", tmp_path / "billions.csv", "--flops", 1e22)
    (tmp_path / "bare.csv").write_text("run,params,tokens,bpb\na,1e8,1e9,1.0\n")
    with pytest.raises(PunaError, match="no column for accuracy"):
        call("forecast", tmp_path / "bare.csv", "--flops", 1e22)


def test_fits_and_forecasts_never_import_torch():
    code = "import sys, puna.scaling.cli, puna.scaling.fit, puna.scaling.forecast, puna.scaling.figures, "
    code += "puna.scaling.advise, puna.scaling.mixes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
