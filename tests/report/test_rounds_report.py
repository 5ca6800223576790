"""The rounds on the run's page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from puna.recipe import parse_recipe
from puna.report import figures
from puna.report.page import render
from puna.report.rounds import rounds
from puna.report.sections import scores
from puna.report.seeds import seeds
from puna.run import Run, figure, to_toml, write_manifest


def share(value: float, n: int = 1000) -> dict[str, Any]:
    return figure(value, "share", value - 0.01, value + 0.01, n)


def make_run(folder: Path, seed: int = 0, over_control: float = 0.2, told: float = 0.98) -> Run:
    recipe = {"name": folder.name, "seed": seed, "posttrain": {"rounds": 2}}
    run = Run(parse_recipe(recipe, "test"), folder)
    out = folder / "rounds"
    out.mkdir(parents=True)
    (folder / "log").mkdir()
    (folder / "recipe.toml").write_text(to_toml(run.recipe.model_dump(mode="json", exclude_none=True)))

    def stage(name: str, value: float, passed: bool) -> dict[str, Any]:
        return {"candidates": [{"step": name, "score": share(value)}], "passed": passed}

    ledger = [{"round": 0, "sft": stage("round-0/sft-1", 0.41, True), "best": {"step": "x", "score": share(0.41)}}]
    for number, value in ((1, 0.63), (2, 0.71)):
        ledger.append(
            {
                "round": number,
                "problems": 800,
                "sample": {"right": share(0.5), "pairs": figure(1234)},
                "reward": {"kept": {"score": share(0.815)}} if number == 1 else None,
                "chosen": {"chats": figure(700), "by_reward": figure(number - 1)},
                "sft": stage(f"round-{number}/sft-1", value, True),
                "dpo": stage(f"round-{number}/dpo-1", value - 0.02, False),
                "best": {"step": f"round-{number}/sft-1", "score": share(value)},
            }
        )
    (out / "ledger.json").write_text(json.dumps(ledger))
    metrics = {"reward.accuracy": share(0.822), "reward.best_of": share(0.77), "reward.random_pick": share(0.66)}
    for name, value in (("start", 0.4), ("end", 0.7), ("control", 0.5), ("on", told), ("off", 0.03)):
        metrics |= {f"rounds.{key}.{name}": share(value) for key in ("first", "solved", "irrelevance")}
        metrics |= {f"rounds.solved.{kind}.{name}": share(value) for kind in ("single", "nested", "parallel", "none")}
    metrics |= {
        f"rounds.first.over_{name}": share(value) for name, value in (("start", 0.3), ("control", over_control))
    }
    write_manifest(out, {"stage": "rounds", "fingerprint": "x", "metrics": metrics})
    return run


def test_the_page_tells_the_rounds(tmp_path: Path):
    page = " ".join(render(make_run(tmp_path / "run")).split())
    assert "Post-training in rounds" in page
    assert "+30.0 points (95% interval +29.0 to +31.0) over the first model, 1,000 held-out problems" in page
    assert "+20.0 points" in page
    assert "81.5%" in page
    assert "1,234" in page
    assert "69.0%, not kept" in page
    assert "700 by reward" in page
    assert "82.2%" in page
    assert "<code>round-2/sft-1</code>" in page
    assert "told every call, equal SFT tokens" in page
    assert "98.0%" in page


def test_a_run_without_rounds_has_no_section(tmp_path: Path):
    run = Run(parse_recipe({"name": "plain"}, "test"), tmp_path)
    assert rounds(run) is None


def test_other_seeds_stand_beside_it(tmp_path: Path):
    run = make_run(tmp_path / "one", 0, 0.02)
    assert seeds(run) is None
    for number, over in ((1, 0.05), (2, -0.01)):
        make_run(tmp_path / f"seed-{number}", number, over, 0.7)
    other = make_run(tmp_path / "other", 3)
    (other.folder / "recipe.toml").write_text('name = "other"\nseed = 3\n')  # another recipe
    found = seeds(run)
    assert found
    assert found["seeds"] == [0, 1, 2]
    rows = {row["title"]: row for row in found["rows"]}
    mean = rows["Over SFT of equal compute"]["mean"]
    half = 4.302653 * 0.03 / 3**0.5  # Student's t for two degrees of freedom; the deviation is .03
    assert [mean["value"], mean["low"], mean["high"]] == pytest.approx([0.02, 0.02 - half, 0.02 + half])
    told = rows["Single calls, told every call"]["mean"]
    assert told["low"] == pytest.approx((0.98 + 0.7 * 2) / 3 - 4.302653 * 0.28 / 3)
    assert told["high"] == 1.0  # no share is more
    page = " ".join(re.sub("<[^>]*>", " ", render(run)).split())
    assert "The same with other seeds" in page
    assert (
        "Over SFT of equal compute +2.0 (+1.0 to +3.0) +5.0 (+4.0 to +6.0) −1.0 (−2.0 to 0.0) +2.0 (−5.5 to +9.5)"
        in page
    )


def test_the_rounds_have_a_mark_among_the_scores():
    models = ("sft", "dpo", "rounds")
    found = scores({f"tools.single.on.{name}": share(0.9) for name in models})
    assert found
    assert found["legend"][-1] == ("series4", "after the rounds")
    assert found["figure"].count(figures.MARKS["series4"]) == 1
