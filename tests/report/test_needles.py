"""The long-context section from a needles.json made by hand."""

import json
import re
from pathlib import Path

import pytest

from puna.recipe import parse_recipe
from puna.report.needles import long_context
from puna.report.page import render
from puna.run import Run, write_manifest

EXAMINATIONS = [
    {"name": "before", "after": 512, "loss": 2.0, "found": {"512": [4, 4, 4], "1024": [0, 1, 4], "2048": [0, 0, 2]}},
    {"name": "1024-2", "after": 1024, "loss": 2.01, "found": {"512": [4, 4, 4], "1024": [4, 4, 4]}},
    {"name": "anneal", "after": 2048, "loss": 1.99, "found": {"512": [4, 4, 4], "1024": [4, 4, 4], "2048": [4, 3, 4]}},
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(parse_recipe({"name": "long", "extend": {"lengths": [1024, 2048]}}, "test"), tmp_path / "long")
    (run.folder / "extend").mkdir(parents=True)
    report = {"seq_len": 512, "haystacks": 4, "examinations": EXAMINATIONS}
    (run.folder / "extend" / "needles.json").write_text(json.dumps(report))
    write_manifest(run.folder / "extend", {"stage": "extend", "fingerprint": "x", "knobs": {}, "metrics": {}})
    return run


def test_every_examination_has_a_map(run: Run):
    section = long_context(run)
    assert section is not None
    assert [each["name"] for each in section["maps"]] == [
        "before the extension", "after 1,024 tokens, attempt 2", "after the anneal",
    ]  # fmt: skip
    assert section["maps"][0]["shares"] == {512: 1.0, 1024: 5 / 12, 2048: 1 / 6}
    assert section["maps"][2]["change"] == pytest.approx(-0.005)
    first, second = (str(each["figure"]) for each in section["maps"][:2])
    shown = re.findall(r'class="strong">([\d–]+)</text>', first)
    assert shown == ["100", "0", "0", "100", "25", "0", "100", "100", "50"]  # by depth, then by length
    assert second.count(">–<") == 3  # 2,048 was not examined
    assert all(size in first for size in (">0.5K<", ">1K<", ">2K<", ">0%<", ">50%<", ">100%<"))


def test_the_page_shows_it_where_it_was_made(run: Run, tmp_path: Path):
    page = render(run)
    assert "from 512 to 2,048 tokens in stages" in page
    assert page.count("<svg viewBox") >= 3
    assert "−0.50%" in page or "-0.50%" in page
    other = Run(parse_recipe({"name": "short"}, "test"), tmp_path / "short")
    assert long_context(other) is None
    assert 'id="long-context"' not in render(other)
