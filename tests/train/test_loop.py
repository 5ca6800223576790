"""The loop against a plain one, against itself on more processes or micro-batches, and across interruptions."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from puna.errors import PunaError
from puna.log import Log
from puna.machine import can_compile, peak_flops
from puna.model.llama import Llama, LlamaConfig
from puna.recipe import Training
from puna.train.batches import Batch, Batches
from puna.train.launch import World
from puna.train.loop import train
from puna.train.losses import NextToken

MakeModel = Callable[[], Llama]
MakeOptions = Callable[..., Training]
MakeRows = Callable[..., Any]


def weights(model: Llama) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def trajectory(log: Log) -> list[tuple[int, float, float, float]]:
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"], line["learning_rate"]) for line in lines]


def test_five_steps_are_those_of_a_plain_loop_with_transformers(
    config: LlamaConfig,
    make_model: MakeModel,
    make_options: MakeOptions,
    random_rows: MakeRows,
    log: Log,
    tmp_path: Path,
):
    rows, options = random_rows(20), make_options(clip_norm=0.5, weight_decay=0.1)
    rows.documents = torch.zeros_like(rows.documents)  # transformers' plain forward knows no packing
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192, "rope_theta": config.rope_theta}  # fmt: skip
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            intermediate_size=config.ffn_dim,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.max_seq_len,
            rope_parameters=scaling,
            tie_word_embeddings=False,
        )
    )
    mine = make_model()
    state = {name if name == "lm_head.weight" else f"model.{name}": w for name, w in mine.state_dict().items()}
    theirs.load_state_dict(state)
    norms = [w for name, w in theirs.named_parameters() if "norm" in name]
    matrices = [w for name, w in theirs.named_parameters() if "norm" not in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    wanted = []
    for step in range(5):
        tokens, labels = rows.tokens[4 * step : 4 * step + 4], rows.labels[4 * step : 4 * step + 4]
        loss = F.cross_entropy(theirs(tokens).logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = [5e-3, 1e-2, 1e-2, 5.5e-3, 1e-3][step]
        optimizer.step()
        wanted.append((loss.item(), norm.item()))

    train(mine, rows, NextToken(), options, World(), tmp_path, log, "test")
    found = [(loss, norm) for _, loss, norm, _ in trajectory(log)]
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in wanted], rel=1e-5)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in wanted], rel=1e-4)
    assert found[0][1] > 0.5  # clipping was at work
    flat = torch.cat([theirs.get_parameter(name).detach().flatten() for name in state])
    assert ((weights(mine) - flat).norm() / flat.norm()).item() < 1e-5


def test_losses_by_source_are_logged_and_change_no_weight(
    make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, tmp_path: Path
):
    models, logs = [], []
    for sources in ((), ("text", "code")):
        models.append(make_model())
        logs.append(Log(tmp_path / str(len(sources)), "test"))
        rows = random_rows(20, gaps=True)
        rows.numbers = (torch.arange(16) >= 10).long().expand(20, 16)
        train(
            models[-1], rows, NextToken(sources=sources), make_options(), World(), tmp_path / "none", logs[-1], "test"
        )
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert trajectory(logs[0]) == trajectory(logs[1])
    for number, line in enumerate(map(json.loads, logs[1].path.read_text().splitlines())):
        labelled = rows.labels[4 * number : 4 * number + 4] >= 0
        text, code = labelled[:, :10].sum().item(), labelled[:, 10:].sum().item()
        assert (text * line["loss/text"] + code * line["loss/code"]) / (text + code) == pytest.approx(line["loss"])
        assert line["loss/text"] != line["loss/code"]
    assert "loss/text" not in logs[0].path.read_text()


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_accumulation_equals_one_large_batch(
    make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, tmp_path: Path, micro_rows: int
):
    rows = random_rows(20, gaps=True)
    assert len(set((rows.labels >= 0).sum(1).tolist())) > 8
    found = []
    for size in (4, micro_rows):
        model, log = make_model(), Log(tmp_path / str(size), "test")
        options = make_options(micro_rows=size, epsilon=1e-5)
        train(model, rows, NextToken(), options, World(), tmp_path / "none", log, "test")
        found.append((weights(model), trajectory(log)))
    assert ((found[0][0] - found[1][0]).norm() / found[0][0].norm()).item() < 1e-6
    for line, other in zip(found[0][1], found[1][1]):
        assert line == pytest.approx(other, rel=1e-6)


def test_bf16_learns_like_fp32(make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, tmp_path: Path):
    losses = {}
    for precision in ("fp32", "bf16"):
        model, log = make_model(), Log(tmp_path / precision, "test")
        train(model, random_rows(20), NextToken(), make_options(precision=precision), World(), tmp_path, log, "test")
        losses[precision] = [loss for _, loss, _, _ in trajectory(log)]
        assert next(model.parameters()).dtype == torch.float32
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.skipif(not can_compile("cpu"), reason="needs a C++ compiler with OpenMP and Python's headers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_training_is_eager_training(
    config: LlamaConfig, make_options: MakeOptions, random_rows: MakeRows, tmp_path: Path
):
    losses = {}
    for choice in ("off", "on"):
        model = Llama(replace(config, layers=1)).init_weights(torch.Generator().manual_seed(1))
        log, loss = Log(tmp_path / choice, "test"), NextToken(compiled=choice == "on")
        train(model, random_rows(12), loss, make_options(compile=choice), World(), tmp_path, log, "test")
        losses[choice] = [loss for _, loss, _, _ in trajectory(log)]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)


def test_it_learns(make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, log: Log, tmp_path: Path):
    rows = random_rows(4)
    rows.tokens, rows.labels, rows.documents = (t.repeat(60, 1) for t in (rows.tokens, rows.labels, rows.documents))
    train(make_model(), rows, NextToken(), make_options(), World(), tmp_path, log, "test")
    losses = [loss for _, loss, _, _ in trajectory(log)]
    assert losses[0] > 4
    assert losses[-1] < 0.1


def test_too_few_rows_and_a_diverging_run_name_the_knobs(
    make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, log: Log, tmp_path: Path
):
    with pytest.raises(PunaError, match=r"SFT has 3 rows, fewer than one step of batch_rows = 4"):
        train(make_model(), random_rows(3), NextToken(), make_options(), World(), tmp_path, log, "SFT")
    options = make_options(peak_lr=1e30, warmup_steps=0)
    with pytest.raises(PunaError, match=r"SFT: loss .* at step \d are not finite; lower peak_lr \(1e\+30\)"):
        train(make_model(), random_rows(20), NextToken(), options, World(), tmp_path, log, "SFT")


# -- interruptions --


class Broken:
    """Rows that break off before a step."""

    def __init__(self, rows: Batches, stop: int | None = None) -> None:
        self.all, self.stop = rows, stop

    def __len__(self) -> int:
        return len(self.all)

    def rows(self, numbers: Sequence[int]) -> Batch:
        if self.stop is not None and numbers[0] >= self.stop:
            raise KeyboardInterrupt
        return self.all.rows(numbers)


class Noisy(NextToken):
    """A loss that draws from torch's own generator."""

    def __call__(self, hidden: torch.Tensor, weight: torch.Tensor, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return super().__call__(F.dropout(hidden, 0.1), weight, batch, counts)


@pytest.fixture
def attempt(make_model: MakeModel, make_options: MakeOptions, random_rows: MakeRows, tmp_path: Path):
    """attempt(folder, stop=None) trains eight steps, or until row `stop` would be read."""
    peak_flops(torch.device("cpu"), torch.float32)  # it draws random numbers when it is first called

    def run(name: str, stop: int | None = None, **changed: Any) -> tuple[Llama, Log]:
        torch.manual_seed(11)
        model, log = make_model(), Log(tmp_path / name / "log", "test")
        options = make_options(checkpoint_seconds=1e-9, **changed)
        rows = Broken(random_rows(32), stop)
        if stop is None:
            train(model, rows, Noisy(), options, World(), tmp_path / name, log, "test")
        else:
            with pytest.raises(KeyboardInterrupt):
                train(model, rows, Noisy(), options, World(), tmp_path / name, log, "test")
        return model, log

    return run


def checkpoints(folder: Path) -> dict[str, dict[str, bytes]]:
    """File -> tensor -> bytes, the newest first: weights, moments and the generator."""
    files = sorted(folder.glob("step-*"), reverse=True)
    return {path.name: {name: t.numpy().tobytes() for name, t in load_file(path).items()} for path in files}


@pytest.mark.parametrize("stops", [(12,), (0, 4, 30)])
def test_resuming_is_bit_exact(attempt: Any, tmp_path: Path, stops: tuple[int, ...]):
    model, log = attempt("straight")
    for stop in stops:
        attempt("broken", stop)
    resumed, relog = attempt("broken")
    assert torch.equal(weights(model), weights(resumed))
    assert trajectory(log) == trajectory(relog)
    assert [step for step, *_ in trajectory(relog)] == list(range(1, 9))
    assert checkpoints(tmp_path / "straight") == checkpoints(tmp_path / "broken")
    assert list(checkpoints(tmp_path / "broken")) == ["step-000000008.safetensors", "step-000000007.safetensors"]


def test_steps_after_the_checkpoint_are_logged_once(attempt: Any, tmp_path: Path):
    _, straight = attempt("straight")
    _, log = attempt("broken", 20)
    for path in sorted((tmp_path / "broken").glob("step-*"))[1:]:
        path.unlink()  # five steps are logged, the fourth is kept
    with log.path.open("a") as handle:
        handle.write('{"step": 6, "lo')  # the process died while it wrote
    assert trajectory(attempt("broken")[1]) == trajectory(straight)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b""], ids=["cut", "one bit", "empty"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    attempt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
):
    model, log = attempt("straight")
    attempt("broken", 20)
    newest = max((tmp_path / "broken").glob("step-*"))
    newest.write_bytes(damage(newest.read_bytes()))
    messages: list[str] = []
    monkeypatch.setattr(Log, "message", lambda self, text: messages.append(text))
    resumed, relog = attempt("broken")
    assert "step-000000005.safetensors is damaged" in messages[0]
    assert "test goes on from step 4 of 8" in messages[1]
    assert torch.equal(weights(model), weights(resumed))
    assert trajectory(log) == trajectory(relog)


def test_with_every_checkpoint_damaged_it_begins_anew(attempt: Any, tmp_path: Path):
    model, _ = attempt("straight")
    attempt("broken", 20)
    for path in (tmp_path / "broken").glob("step-*"):
        path.write_bytes(cut(path.read_bytes()))
    assert torch.equal(weights(model), weights(attempt("broken")[0]))


def test_the_knob_says_how_many_checkpoints_are_kept(attempt: Any, tmp_path: Path):
    attempt("broken", 24, keep_checkpoints=3)
    assert list(checkpoints(tmp_path / "broken")) == [f"step-00000000{n}.safetensors" for n in (6, 5, 4)]
