"""Rounds on a model of random weights: what is kept, what the ledger says, and what a kill at any moment leaves."""

import json
import os
import signal
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from puna.errors import PunaError
from puna.log import Log
from puna.posttrain import rounds, sample, steps
from puna.posttrain.preferences import read_pairs
from puna.posttrain.tool_problems import KINDS, dialogues, problems
from puna.recipe import Recipe
from puna.text.chat import Chat, Message

MakeRecipe = Callable[..., Recipe]

TRAINING = {"seq_len": 256, "batch_rows": 2, "micro_rows": 2, "precision": "fp32", "compile": "off", "processes": 1}
KNOBS = {
    "posttrain": {"rounds": 2, "samples": 4, "max_tokens": 4, "average": [1.0, 0.5], "controls": ["sft", "on", "off"]},
    "sft": TRAINING | {"warmup_steps": 0, "peak_lr": 1e-3, "epochs": 1},
    "reward": TRAINING | {"warmup_steps": 0, "peak_lr": 1e-3},
    "dpo": TRAINING | {"warmup_steps": 0, "peak_lr": 1e-3, "seq_len": 512},
}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A pretrained model and problems. Any answer that begins with an even byte is right: it takes luck, not skill."""
    monkeypatch.setattr(sample, "run_jobs", lambda function, jobs, log, what: [function(*job) for job in jobs])
    monkeypatch.setattr(sample, "start", lambda problem, tool=True: Chat([Message("user", problem["question"])]))
    monkeypatch.setattr(sample, "is_finished", lambda answer, tokenizer: True)
    monkeypatch.setattr(sample, "is_right", lambda problem, turn, message: len(message.content.encode()) % 2 == 0)
    folder = tmp_path / "synthesize"
    folder.mkdir()
    made = {name: problems(group, KINDS, count, 20, 0, name) for name, group, count in
            (("sft", "train", 12), ("prompts", "train", 8), ("validation", "validation", 8),
             ("held_out", "held_out", 8))}  # fmt: skip
    lines: dict[str, list[Any]] = made | {name: dialogues(made["sft"], 6, 1, 0, tool=False) for name in ("on", "off")}
    lines["sft"] = dialogues(made["sft"], 8, 1, 0, tool=False)
    for name, values in lines.items():
        (folder / f"call_{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    return {"pretrain": model_folder, "synthesize": folder}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, world: dict[str, Path], recipe: Recipe) -> dict[str, Any]:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return rounds.run(recipe, world, folder / "out", Log(folder / "log", "rounds", quiet=True))


def candidates(entry: dict[str, Any], stage: str) -> dict[str, float]:
    return {each["step"]: each["score"]["value"] for each in entry[stage]["candidates"]}


def test_the_ledger_says_what_was_trained_measured_and_kept(
    world: dict[str, Path], make_recipe: MakeRecipe, tmp_path: Path
):
    metrics = make(tmp_path, world, make_recipe(**KNOBS))
    ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert [entry["round"] for entry in ledger] == [0, 1, 2]
    for before, entry in pairwise(ledger):
        name = f"round-{entry['round']}"
        assert entry["from"] == before["best"]["step"]
        assert entry["problems"] == 4
        # keep-best: the best of the stage goes on only if it beats what came before
        kept = before["best"]["step"], before["best"]["score"]["value"]
        for stage in ("sft", "dpo"):
            found = candidates(entry, stage)
            assert list(found) == [f"{name}/{stage}-1", f"{name}/{stage}-2", f"{name}/{stage}-average"]
            top = max(found, key=lambda step: found[step])
            assert entry[stage]["passed"] == (found[top] > kept[1])
            kept = (top, found[top]) if found[top] > kept[1] else kept
        assert (entry["best"]["step"], entry["best"]["score"]["value"]) == kept
        rates = [each["peak_lr"] for each in entry["sft"]["candidates"] if "peak_lr" in each]
        assert rates == [1e-3, 5e-4]
        if entry["reward"]:
            found = candidates(entry, "reward")
            assert entry["reward"]["kept"]["score"]["value"] == max(found.values())
    best = tmp_path / "work" / "steps" / ledger[-1]["best"]["step"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    assert metrics["rounds.first.round_2"] == ledger[2]["best"]["score"]
    assert (
        metrics["rounds.first.end"]["n"] == metrics["rounds.solved.on"]["n"] == metrics["rounds.solved.off"]["n"] == 8
    )
    assert {"rounds.first.over_start", "rounds.first.over_control", "rounds.irrelevance.end"} <= metrics.keys()
    chats = (tmp_path / "work/steps/round-1/chosen/chats.jsonl").read_text().splitlines()
    assert len(chats) == ledger[1]["chosen"]["chats"]["value"] > 0


def run_until_killed(folder: Path, world: dict[str, Path], recipe: Recipe, moment: int) -> bool:
    """Make it in another process that is killed at its `moment`th sealing or renaming; whether it came to the end."""
    if pid := os.fork():
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return False
        assert os.WEXITSTATUS(status) == 0
        return True
    try:  # the child: a new step is sealed by write_manifest, then renamed
        left = [moment]

        def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return function(*arguments, **options)

            return call

        steps.write_manifest, steps.rename = mortal(steps.write_manifest), mortal(steps.rename)
        make(folder, world, recipe)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def test_a_kill_in_any_step_leaves_what_a_restart_completes(
    world: dict[str, Path], make_recipe: MakeRecipe, tmp_path: Path
):
    changes = {"posttrain": KNOBS["posttrain"] | {"rounds": 1, "average": [1.0], "controls": []}}
    recipe = make_recipe(**KNOBS | changes)
    assert run_until_killed(tmp_path / "straight", world, recipe, 10**6)
    killed = 0
    while not run_until_killed(tmp_path / "killed", world, recipe, killed % 3):  # before or after a seal, or a renaming
        killed += 1
    assert killed > 10
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "straight" / "out")
    steps_of = (files(tmp_path / name / "work" / "steps") for name in ("killed", "straight"))
    assert next(steps_of) == next(steps_of)
    assert not list((tmp_path / "killed" / "work" / "steps" / ".partial").iterdir())


def test_without_chats_of_calls_the_rounds_say_what_to_give(
    model_folder: Path, make_recipe: MakeRecipe, tmp_path: Path
):
    with pytest.raises(PunaError, match=r"give synthesize\.call_chats"):
        make(tmp_path, {"pretrain": model_folder, "synthesize": tmp_path}, make_recipe(**KNOBS))


def test_a_training_step_goes_on_at_its_checkpoint(tmp_path: Path):
    """What a step leaves in its work folder is there when it is made again; what it left of its artifact is not."""
    seen = []

    def interrupted(out: Path, log: Log) -> dict[str, Any]:
        seen.append(sorted(path.name for path in (*out.iterdir(), *(out.parent / "work").iterdir())))
        (out / "half.txt").write_text("x")
        (out.parent / "work" / "step-7").write_text("y")
        if len(seen) == 1:
            raise KeyboardInterrupt
        return {"made": 1}

    made = steps.Steps(tmp_path / "steps", Log(tmp_path / "log", "test", quiet=True))
    with pytest.raises(KeyboardInterrupt):
        made.make("a/b", interrupted)
    assert made.make("a/b", interrupted) == made.make("a/b", interrupted) == {"made": 1}
    assert seen == [[], ["step-7"]]
    (made["a/b"] / "half.txt").write_text("longer than it was")
    made.make("a/b", interrupted)  # damaged: made again
    assert len(seen) == 3
    assert (made["a/b"] / "half.txt").read_text() == "x"


def test_the_reward_model_chooses_only_if_it_beats_a_random_pick(
    world: dict[str, Path], make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    knobs = {"posttrain": KNOBS["posttrain"] | {"rounds": 1, "average": [1.0], "controls": []}}
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    rounds.run(make_recipe(**KNOBS | knobs), world, tmp_path / "out", Log(tmp_path / "log", "rounds"))
    entry = json.loads((tmp_path / "out" / "ledger.json").read_text())[1]
    assert entry["chosen"]["by_reward"]["value"] == (entry["chosen"]["gain"]["low"] > 0)
    assert ("the reward model does not choose" in capsys.readouterr().err) == (entry["chosen"]["gain"]["low"] <= 0)


def test_sft_may_go_on_with_the_best_model_and_execution_needs_no_reward_model_before_the_end(
    world: dict[str, Path], make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bases: dict[str, str] = {}
    fit = rounds.sft.fit

    def spy(knobs: Any, seed: int, base: Path, chats: list[Path], out: Path, log: Log) -> dict[str, Any]:
        bases[out.parent.name] = base.name
        return fit(knobs, seed, base, chats, out, log)

    monkeypatch.setattr(rounds.sft, "fit", spy)
    changes = {"choose": "execution", "sft_from": "best", "average": [1.0], "controls": [], "pairs_per_prompt": 3}
    make(tmp_path, world, make_recipe(**KNOBS | {"posttrain": KNOBS["posttrain"] | changes}))
    _, first, second = json.loads((tmp_path / "out" / "ledger.json").read_text())
    assert first["reward"] is None
    assert second["reward"]["kept"]["step"] == "round-2/reward-1"
    assert bases["round-0-sft-1"] == world["pretrain"].name
    assert [bases[f"round-{entry['round']}-sft-1"] for entry in (first, second)] == [
        Path(entry["from"]).name for entry in (first, second)
    ]
    sampled = tmp_path / "work/steps/round-1/sample"
    pairs, newest = (read_pairs(sampled / f"{name}.jsonl") for name in ("pairs", "newest"))
    prompts = [tuple(pair.prompt) for pair in pairs]
    assert [tuple(pair.prompt) for pair in newest] == list(dict.fromkeys(prompts))
    assert len(newest) < len(pairs)
