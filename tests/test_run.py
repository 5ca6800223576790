"""Runs with three small stages: what is made, what is skipped, and what a kill leaves behind."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna import run as run_module
from puna.errors import PunaError
from puna.log import Log
from puna.recipe import Recipe, load_recipe, parse_recipe
from puna.run import Run, Stage, figure, only, work_folder

# The stages stand for real ones: first writes a file from its knobs, second reads it, third does not depend on it.
STAGES = (
    Stage("first", "fake:first", (), ("corpus", "seed"), "fake:source"),
    Stage("second", "fake:second", ("first",), ("sft.epochs",)),
    Stage("third", "fake:third", (), ("dpo",)),
    Stage("last", "fake:last", ("second", "third"), ("seed",)),
)


class Fakes:
    """The functions behind the stages; `made` lists what ran, `outside` is what the first reads beside its knobs."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.outside = "1"
        self.interrupt: Callable[[], None] = lambda: None

    def load(self, function: str) -> Callable[..., Any]:
        return getattr(self, function.removeprefix("fake:"))

    def source(self, recipe: Recipe) -> str:
        return self.outside

    def first(self, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
        self.made.append("first")
        assert inputs == {}
        (out / "part").mkdir()
        (out / "part" / "words.txt").write_text(f"{recipe.corpus.min_words // 10} {recipe.seed}")
        return {"first.words": figure(recipe.corpus.min_words, "words")}

    def second(self, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
        self.made.append("second")
        step = work_folder(out) / "step"
        done = int(step.read_text()) if step.exists() else 0
        log.message(f"second goes on from {done}")
        for number in range(done, 10):
            step.write_text(str(number + 1))
            self.interrupt()
        (out / "copy.txt").write_text((inputs["first"] / "part" / "words.txt").read_text() * recipe.sft.epochs)
        return {"second.from": figure(done)}

    def third(self, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
        self.made.append("third")
        (out / "beta.txt").write_text(str(recipe.dpo.beta))
        return {}

    def last(self, recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
        self.made.append("last")
        (out / "all.txt").write_text("".join((inputs[n] / f).read_text() for n, f in
                                             {"second": "copy.txt", "third": "beta.txt"}.items()))  # fmt: skip
        return {}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    monkeypatch.setattr(run_module, "STAGES", STAGES)
    monkeypatch.setattr(run_module, "BY_NAME", {stage.name: stage for stage in STAGES})
    monkeypatch.setattr(run_module, "load", fakes.load)
    return fakes


def make(folder: Path, **knobs: Any) -> Run:
    """A run of a recipe with knobs given as section__knob."""
    data: dict[str, Any] = {"name": "test"}
    for key, value in knobs.items():
        section, _, knob = key.partition("__")
        data |= {section: {knob: value}} if knob else {section: value}
    return Run(parse_recipe(data, "test"), folder / "run")


def files(folder: Path) -> dict[str, bytes]:
    """What must not differ between two equal runs: all but times, which are in the log and the summary."""
    found = (path for path in folder.rglob("*") if path.is_file() and not {"log", "summary.json"} & set(path.parts))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_second_run_makes_nothing(fakes: Fakes, tmp_path: Path):
    seen: list[tuple[str, bool]] = []
    for _ in range(2):
        make(tmp_path).run(on_stage=lambda stage, fresh: seen.append((stage.name, fresh)))
    names = ["first", "second", "third", "last"]
    assert fakes.made == names
    assert seen == [(name, False) for name in names] + [(name, True) for name in names]
    assert (tmp_path / "run" / "last" / "all.txt").read_text() == "5 05 00.1"


def test_a_manifest_tells_where_an_artifact_is_from(fakes: Fakes, tmp_path: Path):
    run = make(tmp_path)
    run.run()
    second, first = run.manifest("second"), run.manifest("first")
    assert first
    assert second
    assert second["stage"] == "second"
    assert second["knobs"] == {"sft.epochs": 2}
    assert second["inputs"] == {"first": first["digest"]}
    assert first["source"] == "1"
    assert first["metrics"]["first.words"]["value"] == 50
    assert first["files"]["part/words.txt"]["bytes"] == 3
    assert {"puna", "torch", "python"} <= set(second["versions"])


@pytest.mark.parametrize(
    ("knobs", "again"),
    [
        ({"sft__epochs": 1}, ["second", "last"]),
        ({"dpo__beta": 0.2}, ["third", "last"]),
        ({"corpus__min_words": 70}, ["first", "second", "last"]),
        ({"corpus__min_words": 55}, ["first"]),  # the bytes are as they were
        ({"seed": 3}, ["first", "second", "last"]),
        ({"evals__batch": 3}, []),
        ({"name": "other"}, []),
    ],
)
def test_a_changed_knob_makes_its_stage_again_and_what_read_its_bytes(
    fakes: Fakes, tmp_path: Path, knobs: dict[str, Any], again: list[str]
):
    make(tmp_path).run()
    fakes.made.clear()
    changed = make(tmp_path, **knobs)
    changed.run()
    assert fakes.made == again
    fakes.made.clear()
    make(tmp_path / "new", **knobs).run()
    assert files(tmp_path / "run") == files(tmp_path / "new" / "run")


def test_a_changed_source_makes_its_stage_again(fakes: Fakes, tmp_path: Path):
    make(tmp_path).run()
    fakes.made.clear()
    fakes.outside = "2"
    make(tmp_path).run()
    assert fakes.made == ["first"]


def test_named_stages_bring_what_they_need(fakes: Fakes, tmp_path: Path):
    run = make(tmp_path)
    run.run(["second"])
    assert fakes.made == ["first", "second"]
    assert run.states() == {"first": "done", "second": "done", "third": "missing", "last": "missing"}
    with pytest.raises(PunaError, match="there is no stage 'forth'; the stages are first, second, third, last"):
        run.run(["forth"])


def test_an_optional_stage_is_made_when_it_is_named(fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stages = tuple(dataclasses.replace(stage, optional=stage.name == "third") for stage in STAGES[:3])
    monkeypatch.setattr(run_module, "STAGES", stages)
    run = make(tmp_path)
    run.run()
    assert run.states() == {"first": "done", "second": "done", "third": "optional"}
    run.run(["third"])
    assert fakes.made == ["first", "second", "third"]
    assert set(run.states().values()) == {"done"}
    assert make(tmp_path, dpo__beta=0.2).states()["third"] == "stale"


def test_staleness_spreads_to_what_depends_on_it(fakes: Fakes, tmp_path: Path):
    assert set(make(tmp_path).states().values()) == {"missing"}
    make(tmp_path).run()
    assert set(make(tmp_path).states().values()) == {"done"}
    states = make(tmp_path, corpus__min_words=70).states()
    assert states == {"first": "stale", "second": "stale", "third": "done", "last": "stale"}
    shutil.rmtree(tmp_path / "run" / "third")
    states = make(tmp_path).states()
    assert states == {"first": "done", "second": "done", "third": "missing", "last": "stale"}


def test_a_stage_cannot_read_a_knob_that_it_did_not_declare(fakes: Fakes, tmp_path: Path):
    def third(recipe: Recipe, *_: Any) -> None:
        print(recipe.sft.epochs)

    fakes.third = third  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match="sft"):
        make(tmp_path).run()


def test_only_keeps_the_named_knobs():
    recipe = Recipe(name="x", seed=5)
    part = pickle.loads(pickle.dumps(only(recipe, ("seed", "pretrain.mix", "pretrain.seq_len", "sft"))))
    assert (part.seed, part.pretrain.mix, part.sft) == (5, recipe.pretrain.mix, recipe.sft)
    assert part.pretrain.seq_len == 8192
    for missing in ("tokens", "steps", "batch_tokens"):
        with pytest.raises(AttributeError):
            getattr(part.pretrain, missing)
    for missing in ("name", "dpo", "model"):
        with pytest.raises(AttributeError):
            getattr(part, missing)


def test_two_runs_are_byte_identical(fakes: Fakes, tmp_path: Path):
    for name in "ab":
        make(tmp_path / name).run()
    one, two = files(tmp_path / "a"), files(tmp_path / "b")
    assert one == two
    assert "run/last/manifest.json" in one


def test_the_run_keeps_its_recipe_and_its_figures(fakes: Fakes, tmp_path: Path):
    run = make(tmp_path, sft__epochs=3)
    run.run()
    assert load_recipe(run.folder / "recipe.toml") == run.recipe == Run.open(run.folder).recipe
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["first.words"] == {"value": 50, "low": None, "high": None, "n": None, "unit": "words"}
    assert {f"minutes.{stage.name}" for stage in STAGES} | {"minutes.total", "memory.peak_gb"} <= set(summary)
    assert 0.01 < summary["memory.peak_gb"]["value"] < 64
    with pytest.raises(PunaError, match="is no run: it has no recipe"):
        Run.open(tmp_path)


# -- damage and interruptions --


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest cut", "manifest gone"])
def test_a_damaged_artifact_is_made_again(fakes: Fakes, tmp_path: Path, damage: str):
    run = make(tmp_path)
    run.run()
    before = files(run.folder)
    path = run.folder / "first" / ("manifest.json" if "manifest" in damage else "part/words.txt")
    path.write_bytes(path.read_bytes()[:-2]) if "cut" in damage else path.unlink()
    assert run.states()["first"] in ("missing", "stale")
    fakes.made.clear()
    run.run()
    assert fakes.made == ["first"]
    assert files(run.folder) == before


class Killed(BaseException):
    pass


def stop_at(count: int) -> Callable[[], None]:
    """Raises at its `count`-th call."""
    calls = iter(range(1, 1000))

    def stop() -> None:
        if next(calls) == count:
            raise Killed

    return stop


def test_an_interrupted_stage_goes_on_from_its_checkpoint(fakes: Fakes, tmp_path: Path):
    make(tmp_path / "straight").run()
    run = make(tmp_path)
    for at, expected in ((4, "4"), (3, "7")):
        fakes.interrupt = stop_at(at)
        with pytest.raises(Killed):
            run.run()
        (step,) = (run.folder / ".partial").glob("second-*/work/step")
        assert step.read_text() == expected
        assert run.states() == {"first": "done", "second": "interrupted", "third": "missing", "last": "missing"}
    fakes.interrupt = lambda: None
    run.run()
    manifest = run.manifest("second")
    assert manifest
    assert manifest["metrics"]["second.from"]["value"] == 7
    assert not list((run.folder / ".partial").iterdir())
    assert (run.folder / "last/all.txt").read_bytes() == (tmp_path / "straight/run/last/all.txt").read_bytes()
    assert [line["whole"] for line in run.timings()] == [True] * 4
    log = [json.loads(line) for line in (run.folder / "log" / "stages.jsonl").read_text().splitlines()]
    seconds = sum(line["seconds"] for line in log if line["stage"] == "second")
    assert run.metrics()["minutes.second"]["value"] == pytest.approx(seconds / 60, abs=1e-3)


def test_checkpoints_of_other_knobs_are_not_used(fakes: Fakes, tmp_path: Path):
    fakes.interrupt = stop_at(4)
    with pytest.raises(Killed):
        make(tmp_path).run()
    fakes.interrupt = lambda: None
    changed = make(tmp_path, sft__epochs=1)
    changed.run()
    assert changed.metrics()["second.from"]["value"] == 0
    assert not list((tmp_path / "run" / ".partial").iterdir())


@pytest.mark.parametrize("moment", ["manifest", "old", "final", "cleaning"])
@pytest.mark.parametrize("stale", [False, True])
def test_killed_around_the_renaming_nothing_is_lost(
    fakes: Fakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, stale: bool
):
    if stale:
        make(tmp_path, sft__epochs=1).run()
        fakes.made.clear()
    run = make(tmp_path)
    rename, rmtree, write_manifest = Path.rename, shutil.rmtree, run_module.write_manifest

    def renaming(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if "second" in str(self) and Path(target).name == {"old": "old", "final": "second"}.get(moment):
            raise Killed
        return result

    def removing(path: Path, **options: Any) -> None:
        if moment == "cleaning" and Path(path).name.startswith("second-"):
            (Path(path) / "work" / "step").unlink()  # it got so far
            raise Killed
        rmtree(path, **options)

    def sealing(artifact: Path, content: dict[str, Any]) -> None:
        if moment == "manifest" and content["stage"] == "second":
            raise Killed
        write_manifest(artifact, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", renaming)
        patch.setattr(shutil, "rmtree", removing)
        patch.setattr(run_module, "write_manifest", sealing)
        if moment == "old" and not stale:
            run.run()  # there is nothing old to move away
        else:
            with pytest.raises(Killed):
                run.run()
    made = [name for name in fakes.made if name == "second"]
    run.run()
    assert set(run.states().values()) == {"done"}
    assert [name for name in fakes.made if name == "second"] == made * (2 if moment == "manifest" else 1)
    make(tmp_path / "straight").run()
    assert files(run.folder / "last") == files(tmp_path / "straight" / "run" / "last")  # with the digest of second

    # and it can be made again afterwards, over whatever the kill left behind
    (run.folder / "second" / "copy.txt").unlink()
    run.run()
    assert set(run.states().values()) == {"done"}


def test_a_second_process_is_refused(fakes: Fakes, tmp_path: Path):
    run = make(tmp_path)
    run.run(["first"])
    code = "import sys; from pathlib import Path; from puna.recipe import Recipe; from puna.run import Run\n"
    code += "with Run(Recipe(name='x'), Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        assert run.locked()
        with pytest.raises(PunaError, match="is in use by another puna run; wait for it or stop it"):
            run.run()
        assert run.states()["first"] == "done"
        other.send_signal(signal.SIGKILL)
    assert not run.locked()  # the lock died with its holder
    run.run()


CHILD = """
import sys, time
from pathlib import Path
from puna import run as run_module
from puna.recipe import Recipe
from puna.run import Run, Stage, work_folder

def stage(recipe, inputs, out, log):
    step = work_folder(out) / "step"
    done = int(step.read_text()) if step.exists() else 0
    print("from", done, flush=True)
    for number in range(done, 40):
        (out / f"{number}.txt").write_text("x" * number)
        run_module.write_text(step, str(number + 1))
        time.sleep(0.01)
    for number in range(40):
        (out / f"{number}.txt").write_text("x" * number)
    return {}

run_module.STAGES = (Stage("only", "test:stage", (), ("seed",)),)
run_module.BY_NAME = {"only": run_module.STAGES[0]}
run_module.load = lambda function: stage
Run(Recipe(name="x"), Path(sys.argv[1])).run()
"""


def test_a_real_kill_costs_only_the_work_since_the_checkpoint(tmp_path: Path):
    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    with start("broken") as child:
        while not (steps := list(tmp_path.glob("broken/.partial/*/work/step"))) or int(steps[0].read_text()) < 5:
            assert child.poll() is None
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "broken" / "only").exists()
    done = int(steps[0].read_text())
    with start("broken") as again, start("straight") as straight:
        assert again.communicate()[0] == f"from {done}\n"
        assert straight.communicate()[0] == "from 0\n"
    assert files(tmp_path / "broken" / "only") == files(tmp_path / "straight" / "only")
    assert len(files(tmp_path / "broken" / "only")) == 41


def test_what_is_made_from_licensed_things_carries_the_licence(tmp_path: Path, fakes: Fakes, monkeypatch):
    make_first = fakes.first

    def licensed(recipe: Recipe, inputs: dict[str, Path], out: Path, log: Log) -> dict[str, Any]:
        (out / "LICENSE").write_text("its terms")
        return make_first(recipe, inputs, out, log)

    monkeypatch.setattr(fakes, "first", licensed)
    run = make(tmp_path)
    run.run()
    carried = {stage.name for stage in STAGES if (run.folder / stage.name / "LICENSE").exists()}
    assert carried == {"first", "second", "last"}
    manifest = run.manifest("last")
    assert manifest is not None
    assert "LICENSE" in manifest["files"]
