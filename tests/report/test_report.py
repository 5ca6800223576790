"""The run's page, from a small made-up run in the formats of the real stages."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.recipe import Recipe, parse_recipe
from puna.report import figures, sections
from puna.report.page import changes, licence, render, shown, write_report
from puna.run import STAGES, Run, figure, to_toml, write_manifest
from puna.train.clock import clock_file

EVIL = '<script>alert("x")</script> & \x00\x1b[31m'
KNOBS = {
    "name": "tiny",
    "pretrain": {"tokens": 512_000, "seq_len": 256, "batch_rows": 4, "micro_rows": 2, "peak_lr": 1.2e-2},
    "model": {"preset": "1m"},
}
PARTS = {"general": 320_000, "math": 30_000, "code": 200_000, "multilingual": 90_000}
LANGUAGES = {"en": 4.02, "de": 2.9, "hi": 2.11}


def fill_corpus(out: Path) -> dict:
    (out / "documents").mkdir()
    (out / "licences").mkdir()
    (out / "licences" / "git-doc.txt").write_text("Format: x\nLicense: GPL-2\n text\nLicense: Expat\nLicense: GPL-2\n")
    packages = [
        {"name": "git-doc", "version": "1:2.39.5", "part": "general", "licence": "licences/git-doc.txt"},
        {"name": "pydoc", "version": "3.14", "part": "code", "licence": "PSF-2.0"},
    ]
    about = {"kind": "debian packages", "source": "demo", "packages": packages, "files": 900}
    (out / "source.json").write_text(json.dumps(about))
    drops = {"filter": {"too-few-words": 200, "repeated-ngrams": 5}, "near": {"near-copy": 95}}
    steps, left = [], 900
    for step in ("read", "extract", "language", "filter", "url", "exact", "near"):
        after = left - sum(drops.get(step, {}).values())
        steps.append({"step": step, "in": left, "out": after, "dropped": drops.get(step, {})})
        left = after
    sizes = {"characters": 900_000, "held_out_documents": 3, "held_out_characters": 5000}
    funnel = {
        "steps": steps,
        "parts": {part: {"documents": 147, **sizes} for part in PARTS},
        "languages": {code: {"documents": 196, **sizes} for code in LANGUAGES},
    }
    (out / "funnel.json").write_text(json.dumps(funnel))
    rows = [
        {
            "url": f"file:general/git-doc/{reason}{i}.html",
            "origin": f"general/git-doc/{reason}{i}.html",
            "title": EVIL if i == 0 else f"Page {i}",
            "language": "" if reason == "too-few-words" else ("en", "de")[i % 4 == 3],
            "characters": 1200,
            "reason": reason,
            "detail": "file:general/git-doc/index.html" if reason == "near-copy" else "",
            "text": f"{EVIL} {reason} " + "words and words " * 60,
        }
        for dropped in drops.values()
        for reason, count in dropped.items()
        for i in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows), out / "dropped.parquet", row_group_size=64)
    return {"corpus.pages": figure(900, "pages")}


def fill_tokenizer(out: Path) -> dict:
    (out / "tokenizer.json").write_text("{}")
    return {"tokenizer.vocabulary": figure(4096, "tokens")}


def fill_shards(out: Path) -> dict:
    parts = {part: {"documents": tokens // 700, "tokens": tokens} for part, tokens in PARTS.items()}
    shards = {"dtype": "uint16", "parts": parts, "characters_per_token": LANGUAGES}
    (out / "shards.json").write_text(json.dumps(shards))
    return {}


def fill_pretrain(out: Path) -> dict:
    (out / "config.json").write_text("{}")
    return {
        "pretrain.parameters": figure(1_234_567),
        "pretrain.tokens": figure(512_000, "tokens"),
        "pretrain.loss": figure(3.21, "nats/token"),
    }


def fill_evals(out: Path) -> dict:
    metrics = {"eval.held_out": figure(950_000, "bytes", n=180)}
    bits = {"xz": 2.3, "bigram": 2.75, "pretrain": 2.05, "sft": 2.21, "dpo": 2.22}
    for name, value in bits.items():
        low, high = (None, None) if name == "xz" else (value - 0.03, value + 0.04)
        metrics[f"eval.bits_per_byte.{name}"] = figure(value, "bits/byte", low, high, 180)
    metrics["eval.bits_per_byte"] = metrics["eval.bits_per_byte.pretrain"]
    shares = {
        "tools.single.on": (0, 0.981, 0.986),
        "tools.single.sampled": (0, 0.94, 0.97),
        "tools.single.off": (0, 0.04, 0.031),
        "chat.language": (0, 0.88, 0.87),
        "chat.title": (0.3, 0.42, 0.43),
    }
    with (out / "samples.jsonl").open("w", encoding="utf-8") as samples:
        for task, values in shares.items():
            for model, value in zip(("pretrain", "sft", "dpo"), values):
                low, high = max(0.0, value - 0.02), min(1.0, value + 0.02)
                metrics[f"{task}.{model}"] = figure(value, "share", low, high, 1000)
                for i in range(6):
                    question = "What is 17 times 23?" if i else EVIL
                    line = {"model": model, "task": task, "question": question, "reply": f"reply {i}", "right": i > 3}
                    if task == "tools.single.on" and model != "pretrain":
                        line["call"] = '{"name": "calculator", "parameters": {"expression": "17 * 23"}}<|eot_id|>'
                    samples.write(json.dumps(line, ensure_ascii=False) + "\n")
            metrics[task] = metrics[f"{task}.dpo"]
            change = values[2] - values[1]
            metrics[f"{task}.change"] = figure(change, "share", change - 0.006, change + 0.006, 1000)
    return metrics


def fill_other(out: Path) -> dict:
    (out / "data.jsonl").write_text("{}\n")
    return {}


FILL: dict[str, Callable[[Path], dict]] = {
    "corpus": fill_corpus,
    "tokenizer": fill_tokenizer,
    "shards": fill_shards,
    "pretrain": fill_pretrain,
    "evals": fill_evals,
}


def fill_log(path: Path, steps: int, first: float, last: float) -> None:
    random = np.random.default_rng(steps)
    with path.open("w") as log:
        for step in range(1, steps + 1):
            loss = last + (first - last) * np.exp(-6 * step / steps) + random.normal(0, 0.1 * last)
            speed = 300 if step == 1 else random.normal(22_000, 1200)
            line = {
                "step": step,
                "loss": float(max(loss, 0.02)),
                "gradient_norm": float(0.4 + random.gamma(2, 0.2)),
                "learning_rate": 1.2e-2 * min(step / 50, 1 - step / steps),
                "tokens_per_second": float(speed),
                "mfu": float(speed / 60_000),
            }
            if path.stem == "pretrain":
                line |= {"loss/general": line["loss"] + 0.1, "loss/wiki": line["loss"] - 0.1}
                line |= {"loss/code": line["loss"] - 0.5} if step % 3 else {}  # not every step has rows of it
            log.write(json.dumps(line) + "\n")
        log.write('{"step": 99')  # still being written
    account = {"useful": 90.0, "data": 0.0, "checkpoints": 1.0, "stopped": 9.0}
    clock_file(path.parent, path.stem).write_text(json.dumps({"seconds": account}))


NEEDED = [stage for stage in STAGES if not (stage.optional or stage.asked)]


def make_run(folder: Path, stages: int = len(NEEDED)) -> Run:
    """A run with its first few stages made."""
    run = Run(parse_recipe(KNOBS, "test"), folder)
    (folder / "log").mkdir(parents=True)
    (folder / "recipe.toml").write_text(to_toml(run.recipe.model_dump(mode="json", exclude_none=True)))
    made = NEEDED[:stages]
    lines = []
    for number, stage in enumerate(made):
        out = folder / stage.name
        out.mkdir()
        fingerprint = run.fingerprint(stage)
        metrics = FILL.get(stage.name, fill_other)(out)
        write_manifest(out, {"stage": stage.name, "fingerprint": fingerprint, "metrics": metrics})
        timing = {
            "stage": stage.name,
            "whole": True,
            "seconds": 20.0 + 40 * number,
            "peak_gb": 1.5,
            "machine": "a test",
        }
        lines.append(json.dumps(timing) + "\n")
    (folder / "log" / "stages.jsonl").write_text("".join(lines))
    logs = {"pretrain": (500, 8.3, 3.2), "sft": (180, 4.0, 0.05), "dpo": (60, 0.7, 0.4)}
    for name, (steps, first, last) in logs.items():
        if name in {stage.name for stage in made}:
            fill_log(folder / "log" / f"{name}.jsonl", steps, first, last)
    return run


VOID = {"meta", "br", "line", "rect", "path", "polyline"}


class Reader(HTMLParser):
    """Collects what a page holds, and fails for tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_the_page_is_one_file_that_needs_no_other(whole: Run):
    path = write_report(whole)
    assert path == whole.folder / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href", "style") and "url" in (value or "")]
    assert "http" not in html
    assert "@import" not in html
    assert "nan" not in re.findall(r"\w+", html)


def test_the_page_has_its_sections_and_the_figures_of_the_run(whole: Run):
    html = render(whole)
    text = " ".join(Reader(html).text.split())
    sections_in_order = ["lineage", "funnel", "mix", "tokenizer", "training", "held-out", "scores", "samples", "next"]
    assert re.findall(r'<section id="([\w-]+)"', html) == sections_in_order
    assert "Nothing to show yet" not in text
    for figure_text in (
        "Of 900 raw pages (debian packages), 600 were kept",
        "1,234,567 parameters was pretrained on 512,000 of their tokens in",
        "2.050 (2.020 to 2.090) bits per byte",
        "98.6% (96.6% to 100.0%) of 1,000 held-out problems",
        "+0.5 points (95% interval −0.1 to +1.1, 1,000 paired questions): no difference",
        "−0.9 points (95% interval −1.5 to −0.3, 1,000 paired questions): worse",
    ):
        assert figure_text in text
    assert "git-doc" in text
    assert "GPL-2, Expat" in text
    for stage in NEEDED:
        manifest = whole.manifest(stage.name)
        assert manifest
        assert manifest["digest"][:12] in text


def test_text_by_others_is_escaped_and_its_control_characters_are_gone(whole: Run):
    html = render(whole)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    assert shown("a" * 700) == "a" * 600 + " …"
    assert shown(None) == ""


@pytest.mark.parametrize("stages", range(len(NEEDED)))
def test_a_run_in_the_making_has_a_page_that_says_what_is_missing(tmp_path: Path, stages: int):
    run = make_run(tmp_path / "tiny", stages)
    text = " ".join(Reader(render(run)).text.split())
    assert "in the making" in text
    assert f"{NEEDED[stages].name} is missing" in text
    assert "the stage evals is not made" in text


def test_training_tells_the_loss_by_source_and_where_the_time_went(tmp_path: Path):
    run = make_run(tmp_path / "run")
    pretrain = sections.training(run)[0]
    assert [name for name, _, _ in pretrain["sources"]["lines"]] == ["general", "wiki", "code"]  # commonest first
    general, code = pretrain["sources"]["lines"][0], pretrain["sources"]["lines"][2]
    assert general[2] == pytest.approx(pretrain["last_loss"] + 0.1)
    assert code[2] < general[2] < general[1]
    text = Reader(render(run)).text
    assert "90.0% steps that count; 1.0% waiting for checkpoints; 9.0% stopped" in text
    assert "loss by source" in text
    assert run.metrics()["pretrain.effective_time"]["value"] == 0.9
    assert sections.training(run)[1]["sources"] is None
    assert figures.apart([50.0, 52.0, 20.0], 10) == [42.0, 52.0, 20.0]


def test_an_interrupted_training_shows_its_curves(tmp_path: Path):
    run = make_run(tmp_path / "tiny", 3)
    fill_log(run.folder / "log" / "pretrain.jsonl", 40, 8.0, 6.0)
    [stage] = sections.training(run)
    assert (stage["stage"], stage["whole"], stage["steps"]) == ("pretrain", False, 40)
    assert "Pretraining, unfinished" in Reader(render(run)).text
    (run.folder / "log" / "pretrain.jsonl").write_text("")
    assert sections.training(run) == []


def test_dropped_documents_are_counted_by_language_and_shown_from_every_row_group(whole: Run):
    told = sections.dropped(whole.folder / "corpus" / "dropped.parquet")
    assert {reason: len(each["examples"]) for reason, each in told.items()} == {
        "too-few-words": 3,
        "repeated-ngrams": 3,
        "near-copy": 3,
    }
    assert told["near-copy"]["languages"] == [("en", 72), ("de", 23)]
    assert all(e["reason"] == reason for reason, each in told.items() for e in each["examples"])


def test_mix_shows_what_was_trained_on_where_a_part_ran_out(whole: Run):
    mix = sections.mix(whole)
    assert mix
    lines = {line["part"]: line for line in mix["lines"]}
    assert lines["math"]["planned_share"] == 0.25
    assert 3.8 < lines["math"]["epochs"] <= 4
    assert lines["math"]["trained_share"] < 0.24
    assert sum(line["trained"] for line in lines.values()) == whole.recipe.pretrain.steps * 1024


def test_a_recipe_that_the_shards_do_not_allow_has_a_page(tmp_path: Path):
    run = make_run(tmp_path / "tiny")
    changed = KNOBS | {"pretrain": KNOBS["pretrain"] | {"tokens": 10**9, "mix": {"general": 0.5, "poems": 0.5}}}
    mix = sections.mix(Run(parse_recipe(changed, "test"), run.folder))
    assert mix
    assert [(line["part"], line["trained"]) for line in mix["lines"]] == [("general", 0)]
    assert "pretrain is stale" in Reader(render(Run(parse_recipe(changed, "test"), run.folder))).text


def test_samples_are_right_and_wrong_ones_of_each_model(whole: Run):
    tasks = sections.samples(whole)
    assert tasks
    assert [task["task"] for task in tasks] == list(sections.TASKS)
    for task in tasks:
        assert [model["name"] for model in task["models"]] == ["pretrained", "after SFT", "after DPO"]
        assert all([s["right"] for s in m["samples"]] == [True, True, False, False] for m in task["models"])


def test_several_sources_are_named_and_the_account_is_linked_where_there_is_one(whole: Run):
    about = {"kind": "files", "source": {"web": "/data/crawl", "books": "/data/books.jsonl"}, "files": 3}
    path = whole.folder / "corpus" / "source.json"
    before = path.read_text()
    assert "account.html" not in render(whole)
    (whole.folder / "corpus" / "account.html").touch()
    path.write_text(json.dumps(about).ljust(len(before)))  # of equal size: the artifact stays whole
    try:
        page = render(whole)
    finally:
        path.write_text(before)
        (whole.folder / "corpus" / "account.html").unlink()
    assert "web: /data/crawl, books: /data/books.jsonl" in page
    assert 'href="../corpus/account.html"' in page


def test_changes_are_the_knobs_that_differ():
    recipe = parse_recipe(KNOBS | {"seed": 3}, "test")
    found = {knob: (value, default) for knob, value, default in changes(recipe)}
    assert found["pretrain.seq_len"] == (256, 8192)
    assert found["seed"] == (3, 0)
    assert len(found) == 7
    assert list(changes(Recipe(name="other"))) == []


def test_licences_are_named_by_their_short_names_or_by_their_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("Format: x\nLicense: MIT\nLicense: GFDL-1.3\nLicense: MIT\n")
    (tmp_path / "b.txt").write_text("License: you may copy this.")
    assert licence(tmp_path, "a.txt") == "MIT, GFDL-1.3"
    assert licence(tmp_path, "b.txt") == "corpus/b.txt"
    assert licence(tmp_path, "PSF-2.0") == "PSF-2.0"


def test_smoothing_is_the_mean_around_each_value():
    values = np.arange(10.0)
    assert np.allclose(figures.smooth(values, 1), values)
    assert np.allclose(figures.smooth(values, 3)[1:-1], values[1:-1])
    assert np.allclose(figures.smooth(np.full(5, 2.0), 4), 2.0)


@pytest.mark.parametrize("count", [1, 2, 399, 400, 401, 5000])
def test_thinning_keeps_the_end_and_few_points(count: int):
    places = figures.thin(np.zeros(count))
    assert places[-1] == count - 1
    assert min(count, 200) <= len(places) <= figures.POINTS
    assert (np.diff(places) > 0).all()


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1, False), (0, 5859, False), (2.03, 2.09, False), (0.02, 4.1, True), (3.1, 8.9, True), (5e-5, 1e-2, False)],
)
def test_ticks_are_few_and_on_the_axis(low: float, high: float, log: bool):
    ticks = figures.Axis(low, high, 0, 300, log).ticks()
    assert 3 <= len(ticks) <= 11
    assert all(low <= tick <= high for tick in ticks)
    assert len({figures.short(tick) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (3e-4, "3e-4"), (0.012, "0.012"), (5000, "5,000"), (22000, "22k"), (1.5e6, "1.5M")],
)
def test_short_numbers(value: float, text: str):
    assert figures.short(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0123, "+1.2"), (-0.004, "−0.4"), (0.0, "0.0"), (-0.0001, "0.0"), (0.0004, "0.0")]
)
def test_differences_carry_their_sign(share: float, text: str):
    assert sections.points(share) == text
