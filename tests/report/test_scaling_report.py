"""The scaling laws on the run's page, from a small made-up artifact in the format of the stage."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.recipe import parse_recipe
from puna.report.figures import Band, Curve, Place, log_chart
from puna.report.page import render
from puna.report.scaling import scaling, scientific
from puna.run import Run, to_toml, write_manifest

BUDGETS = (1e18, 1e19, 1e20)


def span(value: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low or value * 0.9, "high": high or value * 1.1}


def recommendation(flops: float, name: str) -> dict[str, Any]:
    tokens = math.sqrt(flops) * (1.2 if name == "parametric" else 1.0)
    return {"flops": flops, "approach": name, "params": span(flops / 6 / tokens), "tokens": span(tokens)}


def make_run(folder: Path, problem: str | None = None, data: bool = True) -> Run:
    run = Run(parse_recipe({"name": "laws"}, "test"), folder)
    out = folder / "scaling"
    out.mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(run.recipe.model_dump(mode="json", exclude_none=True)))
    lines = ["run,purpose,budget,flops,tokens,params,active_params,loss,bits_per_byte"]
    for budget in BUDGETS:
        for tokens in (0.4, 0.8, 1.6):
            count = math.sqrt(budget) * tokens
            size = budget / 6 / count
            lines.append(f"r,isoflop,{budget},{budget},{count},{size},{size},{2 + math.log(tokens) ** 2},0.8")
    lines.append("r,mix:one,1e18,1e18,1e9,1e9,1e9,99,9")
    (out / "points.csv").write_text("\n".join(lines) + "\n")
    approaches: dict[str, Any] = {
        name: {"tokens_exponent": span(0.5, 0.4, 0.6), "params_exponent": span(0.5)}
        for name in ("isoflop", "parametric")
    }
    approaches["parametric"]["law"] = {name: span(1.5) for name in ("E", "A", "B", "alpha", "beta")}
    curve = {"tokens": [1e9, 2e9, 4e9], "loss": [2.5, 2.2, 2.4]}
    laws = {
        "runs": 9,
        "level": 0.95,
        "preferred": "isoflop",
        "flops_per_param_token": 6.0,
        "approaches": approaches,
        "recommendations": [recommendation(b, name) for b in (*BUDGETS, 1e22) for name in approaches],
        "budgets": [
            {"flops": b, "best_tokens": math.sqrt(b), "best_loss": 2.0, "problem": "x" if b == 1e19 else None}
            for b in BUDGETS
        ],
        "isoflop": [{"flops": b, **curve} for b in BUDGETS],
        "plan": [
            {
                "flops": 1e22,
                "params": 1_700_000_000,
                "tokens": 1e12,
                "loss": span(1.9),
                "model": {"dim": 2048, "layers": 24, "heads": 16, "kv_heads": 8, "ffn_dim": 5464},
            }
        ],
        "warnings": ["the approaches disagree & <b>more</b>"],
        "failed": {"1e18-77": "its loss is not finite"},
    }
    runs = [{"active_params": 1e9, "tokens": 1.6e10, "loss": 2.0, "forecast": 2.05, "low": 1.9, "high": 2.1}]
    runs.append({"active_params": 2e9, "tokens": 8e9, "loss": 2.2, "forecast": 2.1, "low": 2.05, "high": 2.15})
    forecast = {"budget": 1e20, "fitted_runs": 6, "level": 0.9, "problem": problem, "runs": [] if problem else runs}
    forecast["lowest"] = None if problem else {"loss": 1.98, "forecast": 2.01, "low": 1.93, "high": 2.08}
    ranking = [{"mix": "more-code", "loss": [1.8, 1.7, 1.9], "best": 0.93}]
    probe = {"delta": [-0.01, -0.02, -0.005], "relative": -0.004, "runs": [2, 2], "helps": True}
    judged = {"target": 1e22, "mixes": {"ranking": ranking}, "probes": {"math": probe}}
    for name, content in {"fit": laws, "forecast": forecast, **({"data": judged} if data else {})}.items():
        (out / f"{name}.json").write_text(json.dumps(content))
    write_manifest(out, {"stage": "scaling", "fingerprint": "x", "metrics": {}})
    return run


def text_of(html: str) -> str:
    section = re.search(r'<section id="scaling">.*?</section>', html, re.DOTALL)
    assert section
    return " ".join(re.sub(r"<[^>]+>", " ", section[0]).split())


def test_the_page_shows_the_laws(tmp_path: Path):
    html = render(make_run(tmp_path / "laws"))
    text = text_of(html)
    for said in (
        "9 models were trained at 3 budgets from 1e18 to 1e20 FLOPs",
        "IsoFLOP parabolas 0.500 (0.400 to 0.600)",
        "2 warnings",
        "&amp; &lt;b&gt;more",
        "1e18-77 failed: its loss is not finite",
        "through the 6 runs of the smaller budgets alone foretells the 2 runs at 1e20 FLOPs within 4.5%",
        "1 of 2 lie inside their 90% interval",
        "1e22 dim 2,048, 24 layers, 16 heads 1.7 billion 1 trillion 1.900 (1.710 to 2.090)",
        "more-code 1.800 (1.700 to 1.900) 93.0%",
        "Annealing on math changes the held-out loss by -0.40%",
        "it helps",
    ):
        assert said in text, said
    assert "nan" not in re.findall(r"\w+", text.lower())
    assert html.count("<svg") >= 4


def test_the_frontier_leaves_out_budgets_without_a_minimum(tmp_path: Path):
    found = scaling(make_run(tmp_path / "laws"))
    assert found
    for figure in found["frontiers"]:
        assert figure.count('class="dot') == 2
        assert figure.count("<polyline") == 2
        assert figure.count("dashed") == 1
        assert figure.count("<polygon") == 1
    assert found["isoflop"].count('class="dot') == 9


def test_a_sweep_that_cannot_be_tested_says_why(tmp_path: Path):
    text = text_of(render(make_run(tmp_path / "laws", problem="no law goes through 3 runs", data=False)))
    assert "No test: no law goes through 3 runs" in text
    assert "Annealing" not in text


def test_without_a_sweep_there_is_no_section(tmp_path: Path):
    run = Run(parse_recipe({"name": "none"}, "test"), tmp_path)
    assert scaling(run) is None
    assert 'id="scaling"' not in render(run)


def test_a_chart_of_logarithms_places_decades_evenly():
    x = np.array([1e18, 1e19, 1e20])
    chart = log_chart(
        "t",
        [Curve(x, x / 1e17, "series1", "end")],
        [Place(1e19, 100, "series2")],
        "x",
        "y",
        [Band(x, x / 2e17, x / 5e16, "series1")],
    )
    [line] = re.findall(r'<polyline[^>]* points="([^"]+)"', chart)
    places = [float(value.split(",")[0]) for value in line.split()]
    assert places[2] - places[1] == pytest.approx(places[1] - places[0], abs=0.2)
    assert f"translate({places[1]:.1f}" in chart
    assert ">end</text>" in chart
    assert [scientific(value) for value in (3e10, 1.2e12, 0.5)] == ["3e10", "1.2e12", "0.5"]
