"""The whole recipe on a few pages, through the command line: made, skipped, changed, killed, made again, talked to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from puna.cli import main
from puna.run import STAGES

RECIPE = """
[corpus]
held_out = 0.2
workers = 1
[tokenizer]
vocab_size = 512
special_tokens = 16
[model]
preset = "1m"
dim = 32
layers = 1
heads = 2
kv_heads = 1
ffn_dim = 64
[pretrain]
tokens = 30_000
max_epochs = 100
seq_len = 64
batch_rows = 4
peak_lr = 1e-2
warmup_steps = 5
processes = 1
compile = "off"
precision = "fp32"
checkpoint_seconds = 0.001
[synthesize]
tool_chats = 12
plain_chats = 4
question_chats = 12
preference_problems = 3
held_out_problems = 3
held_out_questions = 3
[sft]
seq_len = 2048
batch_rows = 2
processes = 1
compile = "off"
precision = "fp32"
[dpo]
seq_len = 2048
batch_rows = 1
samples = 2
max_tokens = 4
processes = 1
compile = "off"
precision = "fp32"
[evals]
held_out_bytes = 3000
max_tokens = 4
"""
NOUNS = ["river", "bridge", "village", "winter", "garden", "stone", "teacher", "letter", "engine", "harbour", "forest"]
VERBS = ["crossed", "painted", "remembered", "found", "carried", "opened", "described", "repaired", "followed"]
TOPICS = ("the grassland", "a river in spring", "the history of bread", "how bridges are built", "the night sky")


def sentence(random: Random) -> str:
    one, two, three = random.sample(NOUNS, 3)
    when = random.choice(["In the spring", "After a while", "On that day", "As it was late", "For this reason"])
    return (
        f"{when} the {one} of the {two} was {random.choice(VERBS)} by {random.randint(2, 99)} people from the {three}."
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a recipe and forty pages of made-up prose behind a menu."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "pages").mkdir()
    random = Random(0)
    for number in range(40):
        topic = TOPICS[number % len(TOPICS)]
        text = "".join(f"<p>{sentence(random)} {sentence(random)}</p>\n" for _ in range(12))
        page = f"<html lang=en><title>{topic} {number}</title><body><nav><a href=x>Home</a></nav><main>{text}</main>"
        (folder / "pages" / f"{number}.html").write_text(page)
    (folder / "small.toml").write_text(RECIPE)
    return folder


def puna(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), cwd=folder, capture_output=True, text=True, timeout=300, env=environment())
    return done


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "puna", *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run_words(name: str) -> list[str]:
    # an untrained model makes no right call: a pair needs one, so DPO is left out here
    stages = [stage.name for stage in STAGES if not (stage.optional or stage.asked or stage.name in ("dpo", "evals"))]
    return ["run", "small.toml", *stages, "corpus.source=pages", f"name={name}"]


@pytest.fixture(scope="module")
def made(workplace: Path) -> Path:
    done = puna(workplace, *run_words("small"))
    assert done.returncode == 0, done.stderr
    return workplace / "runs" / "small"


def digests(run: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in run.glob("*/manifest.json")}


def test_the_run_leaves_artifacts_a_report_and_figures(made: Path):
    assert set(digests(made)) == {"corpus", "tokenizer", "shards", "pretrain", "synthesize", "sft"}
    figures = json.loads((made / "summary.json").read_text())
    assert figures["pretrain.tokens"]["value"] == 29_952
    assert figures["minutes.pretrain"]["value"] > 0
    assert "<html" in (made / "report" / "index.html").read_text()
    assert not list((made / ".partial").iterdir())


def test_a_second_run_skips_everything_and_a_changed_knob_does_not(workplace: Path, made: Path):
    before = {path: path.stat().st_mtime_ns for path in made.glob("*/manifest.json")}
    done = puna(workplace, *run_words("small"))
    assert done.returncode == 0
    assert done.stderr.count("is there already") == 6
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/manifest.json")} == before
    old = digests(made)
    assert puna(workplace, *run_words("small"), "sft.peak_lr=2e-3").returncode == 0
    new = digests(made)
    assert [name for name in old if old[name] != new[name]] == ["sft"]


def test_two_runs_are_byte_identical_though_one_was_killed(workplace: Path, made: Path):
    with subprocess.Popen(
        command(*run_words("killed")), cwd=workplace, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        checkpoints = workplace / "runs/killed/.partial"
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("pretrain-*/work/step-*.safetensors")):
            assert process.poll() is None, "it ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    killed = workplace / "runs" / "killed"
    assert "interrupted" in puna(workplace, "status", "runs/killed").stderr
    done = puna(workplace, *run_words("killed"))
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stderr
    assert puna(workplace, *run_words("straight")).returncode == 0
    assert digests(killed) == digests(workplace / "runs" / "straight")
    for path in (workplace / "runs" / "straight").glob("*/manifest.json"):
        assert path.read_bytes() == (killed / path.parent.name / "manifest.json").read_bytes()


def test_chat_and_export(workplace: Path, made: Path):
    done = puna(workplace, "chat", "runs/small", "--message", "What is 1 plus 2?", "--max-tokens", "5")
    assert done.returncode == 0, done.stderr
    for form, name in (("hf", "model.safetensors"), ("meta", "consolidated.00.pth")):
        assert puna(workplace, "export", "runs/small", form, "--to", form).returncode == 0
        assert (workplace / form / name).exists()
        again = puna(workplace, "export", "runs/small", form, "--to", form)
        assert again.returncode == 1
        assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "small.toml", "pretrain.warmup=3"], "did you mean pretrain.warmup_steps?"),
        (["run", "small.toml", "sfd"], "'sfd' is neither a stage"),
        (["run", "none.toml"], "no recipe at none.toml"),
        (["run", "small.toml", "corpus", "corpus.source=nowhere", "name=x"], "nowhere"),
        (["plan", "small.toml", "--machine", "abacus"], "machine 'abacus' is not known"),
        (["plan", "small.toml", "model.preset=9b"], "the presets are 1m"),
        (["status", "pages"], "pages is no run"),
        (["chat", "pages"], "neither a run"),
    ],
)
def test_errors_say_what_to_do(workplace: Path, words: list[str], said: str, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "argv", ["puna", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert said in capsys.readouterr().err
