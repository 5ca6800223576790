"""The loop under layouts: it trains the same model as one process, and goes on from any layout in any other."""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import BRANCH, PRESETS, Llama
from puna.parallel.checkpoint import load_parts
from puna.posttrain.reward import Ranking
from puna.posttrain.reward_model import RewardModel
from puna.recipe import Training
from puna.recipe.layout import Layout
from puna.train.average import WeightAverage
from puna.train.batches import IGNORE, Batch
from puna.train.checkpoint import found, weights_of
from puna.train.launch import World, launch
from puna.train.loop import train
from puna.train.losses import Loss, NextToken, Preference

CONFIG = replace(PRESETS["1m"], vocab_size=64, dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=64)
STEPS = 4


class RandomRows:
    """Rows of two documents; for a loss that compares answers, of one with two branches, scored and with a reference,
    or with the ranks of the answers."""

    def __init__(self, rows: int, loss: Loss) -> None:
        random = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(CONFIG.vocab_size, (rows, 17), generator=random)
        self.loss = loss

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, numbers: Sequence[int]) -> Batch:
        tokens = self.tokens[list(numbers)]
        documents = (torch.arange(16) >= 7).long().expand(len(tokens), 16)
        batch = Batch(tokens[:, :-1], tokens[:, 1:], documents, sources=tokens[:, :-1] % 2)
        if not isinstance(self.loss, NextToken):
            branches = torch.tensor([0] * 4 + [1] * 5 + [2] * 7)
            batch.documents = branches * BRANCH + torch.arange(len(tokens))[:, None]
            batch.scored = (branches > 0).expand_as(documents)
            batch.reference = torch.full((len(tokens), 2), -40.0)
        if isinstance(self.loss, Ranking):
            batch.labels = torch.full_like(batch.tokens, IGNORE)
            batch.labels[:, [8, 15]] = torch.tensor([[1, 0]])
        return batch


LAYOUTS = {
    "tp dp": Layout(tp=2),
    "pp dp": Layout(pp=2),
    "cp tp": Layout(cp=2, tp=2),
    "interleaved tp": Layout(pp=2, tp=2, schedule="interleaved", stages=2),
    "fsdp": Layout(shard=4),
    "hybrid recompute": Layout(shard=2, recompute="full"),
}
MEANS = {"mean pp tp": Layout(pp=2, tp=2), "mean fsdp": Layout(shard=4)}
CURVES = {"long tp dp": Layout(tp=2), "long pp cp": Layout(pp=2, cp=2)}
RANKED = {"reward tp pp": Layout(tp=2, pp=2), "reward tp dp": Layout(tp=2), "reward fsdp": Layout(shard=4)}
PLAIN = Layout()
DPO = Preference(0.1, 0.2)


def run(
    world: World,
    folder: Path,
    layout: Layout,
    loss: Loss | None = None,
    steps: int = STEPS,
    mean: bool = False,
    **changed: Any,
) -> None:
    """Steps of four rows, into folder/log and folder/work; the last weights, or the mean of all, into
    folder/weights.pt."""
    warnings.simplefilter("ignore")  # torch's, about itself
    knobs: dict[str, Any] = {"seq_len": 16, "batch_rows": 4, "peak_lr": 1e-2, "warmup_steps": 2, "epsilon": 1e-4}
    knobs |= {"precision": "fp32", "compile": "off", "keep_every": 2, "keep_checkpoints": 1, "layout": layout}
    options = Training(**knobs | changed)
    model = (RewardModel if isinstance(loss, Ranking) else Llama)(CONFIG).init_weights(torch.Generator().manual_seed(1))
    loss = loss or NextToken(sources=["even", "odd"])
    log = Log(folder / "log", "test", quiet=True)
    average = WeightAverage(folder / "average", world.rank, steps, steps, steps) if mean else None
    train(model, RandomRows(4 * steps, loss), loss, options, world, folder / "work", log, "test", average)
    if world.rank == 0:
        torch.save({name: weight.clone() for name, weight in model.state_dict().items()}, folder / "weights.pt")


def run_all(world: World, folder: Path) -> None:
    """All layouts, each from the start; then from the half of each in the next, and of two of them in themselves."""
    names = list(LAYOUTS)
    for name in names:
        run(world, folder / name, LAYOUTS[name])
    pairs = [*zip(names, [*names[1:], names[0]]), *((name, name) for name in names[1:3])]
    for begun, name in [*pairs, ("plain", "tp dp")]:
        again = folder / f"{begun} in {name}"
        if world.rank == 0:
            half = next(path for step, path in found(folder / begun / "work") if step == 2)
            copy = shutil.copytree if half.is_dir() else shutil.copyfile
            (again / "work").mkdir(parents=True)
            copy(half, again / "work" / half.name)
        torch.distributed.barrier()
        run(world, again, LAYOUTS[name])
    for name, layout in CURVES.items():
        run(world, folder / name, layout, steps=20)
    for name, layout in MEANS.items():
        run(world, folder / name, layout, mean=True)
    run(world, folder / "dpo", Layout(tp=2, pp=2), DPO)
    for name, layout in RANKED.items():
        run(world, folder / name, layout, Ranking())
    run(world, folder / "uneven", Layout(tp=2), batch_rows=3)  # three micro-batches for two replicas
    with pytest.raises(PunaError, match=r"layout\.cp = 2: Preference needs whole rows; set cp = 1"):
        run(world, folder / "refused", Layout(cp=2), DPO)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run(World(), folder / "plain", PLAIN)
    run(World(), folder / "long", PLAIN, steps=20)
    run(World(), folder / "mean", PLAIN, mean=True)
    run(World(), folder / "reward", PLAIN, Ranking())
    launch(run_all, 4, folder)
    return folder


def losses(folder: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (folder / "log" / "test.jsonl").read_text().splitlines()]
    names = ["loss", "gradient_norm", *(["loss/even", "loss/odd"] if "loss/even" in lines[0] else [])]
    return [tuple(line[name] for name in names) for line in lines]


def test_the_log_has_the_loss_by_source(trained: Path) -> None:
    assert len(losses(trained / "plain")[0]) == len(losses(trained / "cp tp")[0]) == 4


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pt")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    flat, other_flat = (torch.cat([weights[name].flatten() for name in sorted(one)]) for weights in (one, other))
    return ((flat - other_flat).norm() / flat.norm()).item()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_trains_the_same_model_as_one_process(trained: Path, name: str) -> None:
    for line, plain in zip(losses(trained / name), losses(trained / "plain"), strict=True):
        assert line == pytest.approx(plain, rel=1e-5)
    assert distance(weights(trained / name), weights(trained / "plain")) < 1e-5


@pytest.mark.parametrize("name", MEANS)
def test_a_layout_averages_the_same_weights_as_one_process(trained: Path, name: str) -> None:
    assert distance(weights(trained / name), weights(trained / "mean")) < 1e-5
    assert distance(weights(trained / name), weights(trained / "plain")) > 1e-4


@pytest.mark.parametrize("name", CURVES)
def test_the_loss_curve_of_twenty_steps_is_that_of_one_process(trained: Path, name: str) -> None:
    curve, plain = losses(trained / name), losses(trained / "long")
    assert len(curve) == 20
    assert plain[-1][0] < plain[0][0]
    for line, one in zip(curve, plain, strict=True):
        assert line == pytest.approx(one, rel=1e-5)


def test_a_run_goes_on_in_any_other_layout(trained: Path) -> None:
    names = [path.name for path in trained.iterdir() if " in " in path.name]
    assert len(names) == len(LAYOUTS) + 3
    for name in names:
        begun, _, ended = name.partition(" in ")
        resumed = losses(trained / name)
        assert len(resumed) == 2, "it went on from step 2"
        for line, straight in zip(resumed, losses(trained / begun)[2:]):
            assert line[0] == pytest.approx(straight[0], rel=1e-6)
        if begun == ended:
            assert resumed == losses(trained / begun)[2:]
            assert distance(weights(trained / name), weights(trained / begun)) == 0
        else:
            assert distance(weights(trained / name), weights(trained / begun)) < 1e-5


def test_one_process_goes_on_from_parts(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "interleaved tp" / "work" / "step-000000002", tmp_path / "work" / "step-000000002")
    run(World(), tmp_path, PLAIN)
    for line, straight in zip(losses(tmp_path), losses(trained / "plain")[2:], strict=True):
        assert line[0] == pytest.approx(straight[0], rel=1e-6)


def test_dpo_and_a_share_that_does_not_come_out_even(trained: Path, tmp_path: Path) -> None:
    run(World(), tmp_path / "dpo", PLAIN, DPO)
    run(World(), tmp_path / "uneven", PLAIN, batch_rows=3)
    for name in ("dpo", "uneven"):
        for line, plain in zip(losses(trained / name), losses(tmp_path / name), strict=True):
            assert line == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", RANKED)
def test_a_reward_model_whose_head_is_one_row(trained: Path, name: str) -> None:
    for line, plain in zip(losses(trained / name), losses(trained / "reward"), strict=True):
        assert line == pytest.approx(plain, rel=1e-5)
    assert distance(weights(trained / name), weights(trained / "reward")) < 1e-5
    assert weights(trained / "reward")["lm_head.weight"].shape == (1, CONFIG.dim)


def test_a_checkpoint_becomes_a_model_without_a_process_group(trained: Path, tmp_path: Path) -> None:
    last = trained / "cp tp" / "work" / "step-000000004"
    model = load_parts(last, tmp_path)
    assert model.config == CONFIG
    assert distance(dict(model.state_dict()), weights(trained / "cp tp")) == 0
    one_by_one = dict(weights_of(last))
    assert distance(one_by_one, weights(trained / "cp tp")) == 0


@pytest.mark.parametrize("what", ["a byte", "a file", "the metadata"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    shutil.copytree(trained / "fsdp" / "work", tmp_path / "work")
    newest = tmp_path / "work" / "step-000000004"
    file = newest / "__1_0.distcp"
    if what == "a byte":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif what == "a file":
        file.unlink()
    else:
        (newest / ".metadata").write_bytes(b"")
    messages: list[str] = []
    monkeypatch.setattr(Log, "message", lambda self, text: messages.append(text))
    run(World(), tmp_path, PLAIN)
    assert "checkpoint step-000000004 is damaged" in messages[0]
    assert "test goes on from step 2 of 4" in messages[1]
