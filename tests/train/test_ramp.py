"""Batches that grow: steps, rows and learning rate follow the recipe, no token comes twice, a kill changes nothing."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.log import Log
from puna.model.llama import Llama
from puna.recipe import Pretrain
from puna.recipe.training import Stretch
from puna.train.batches import Blend, Shards, blends_of, place_in, rows_of_step, whole_rows
from puna.train.launch import World
from puna.train.loop import train
from puna.train.losses import NextToken
from puna.train.optimizer import learning_rate


def pretrain(**changed: Any) -> Pretrain:
    values: dict[str, Any] = {
        "tokens": 640, "seq_len": 16, "batch_rows": 4, "micro_rows": 2, "ramp": [(64, 2, 4), (192, 2, 8)],
        "mix": {"text": 1.0}, "peak_lr": 1e-2, "warmup_steps": 2, "precision": "fp32", "compile": "off", "processes": 1,
    }  # fmt: skip
    return Pretrain(**(values | changed))


def test_the_ramp_of_the_paper():
    knobs = pretrain(
        tokens=15_600_000_000_000,
        seq_len=8192,
        batch_rows=2048,
        ramp=[(252_000_000, 1024, 4096), (2_870_000_000_000, 1024, 8192)],
    )
    assert [stretch.batch_tokens for stretch in knobs.stretches(0)] == [2**22, 2**23, 2**24]
    assert [stretch.steps for stretch in knobs.stretches(0)] == [60, 342_100, 758_767]


def test_stretches_and_their_rows():
    knobs = pretrain()
    stretches = knobs.stretches(0)
    assert stretches == [Stretch(8, 2, 4), Stretch(8, 2, 8), Stretch(7, 4, 16)]
    assert knobs.steps == 23
    assert rows_of_step(0, stretches) == (range(2), 4)
    assert rows_of_step(7, stretches) == (range(14, 16), 4)
    assert rows_of_step(8, stretches) == (range(16, 18), 8)
    assert rows_of_step(22, stretches) == (range(56, 60), 16)
    with pytest.raises(IndexError):
        rows_of_step(23, stretches)
    assert pretrain(ramp=[]).stretches(0) == [Stretch(10, 4, 16)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ramp": [(64, 2, 5)]}, "ramp until 64: 2 rows of 5 must be a multiple of micro_rows=2 and a divisor"),
        ({"ramp": [(64, 3, 4)]}, "3 rows of 4 must be a multiple of micro_rows=2"),
        ({"ramp": [(64, 2, 4), (64, 2, 8)]}, "its ends must grow and stay below tokens=640"),
        ({"ramp": [(640, 2, 4)]}, "its ends must grow and stay below tokens=640"),
        ({"average": 2}, "average=2 needs an anneal of as many steps; raise anneal_tokens"),
    ],
)
def test_a_ramp_that_cannot_be_is_named(changed: dict[str, Any], message: str):
    with pytest.raises(ValueError, match="(?s).*" + message.replace("(", "[(]")):
        pretrain(**changed)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.sampled_from([1, 2, 3])), min_size=1, max_size=4))
def test_every_part_of_a_row_is_read_at_most_once(shapes: list[tuple[int, int, int]]):
    stretches = [Stretch(steps, rows, 12 // parts) for steps, rows, parts in shapes[:-1]]
    stretches.append(Stretch(shapes[-1][0], shapes[-1][1], 12))
    rows = sum(stretch.steps * stretch.batch_rows for stretch in stretches)
    read: Counter[tuple[int, int]] = Counter()
    for number in range(rows):
        place, part, seq_len = place_in(number, stretches)
        assert 0 <= place < sum(whole_rows(stretches))
        assert (part + 1) * seq_len <= 12
        read.update((place, token) for token in range(part * seq_len, (part + 1) * seq_len))
    assert max(read.values()) == 1
    with pytest.raises(IndexError):
        place_in(rows, stretches)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A part of 57 different tokens in a row again and again, 0 (begin_of_text) at places of its own."""
    tokens = np.arange(1200) % 57 + 1
    tokens[::23] = 0
    tokens.astype(np.uint16).tofile(tmp_path / "text.bin")
    (tmp_path / "shards.json").write_text(json.dumps({"dtype": "uint16"}))
    return tmp_path


def open_shards(folder: Path, knobs: Pretrain) -> Shards:
    return Shards(folder, blends_of(knobs), knobs.seq_len, 1, 0, seed=1, stretches=knobs.stretches(0))


def test_rows_of_the_ramp_are_parts_of_long_rows(shards: Path):
    knobs = pretrain()
    batches = open_shards(shards, knobs)
    assert len(batches) == 60
    long = Shards(shards, [Blend(40, {"text": 1.0})], 16, 1, 0, seed=1)
    stretches = knobs.stretches(0)
    for step in (0, 3, 7, 8, 15, 16, 22):
        numbers, seq_len = rows_of_step(step, stretches)
        batch = batches.rows(numbers)
        assert batch.tokens.shape == (len(numbers), seq_len)
        for row, number in enumerate(numbers):
            place, part, _ = place_in(number, stretches)
            whole = long.rows([place])
            assert batch.tokens[row].tolist() == whole.tokens[0, part * seq_len : (part + 1) * seq_len].tolist()
            assert batch.labels[row].tolist() == whole.labels[0, part * seq_len : (part + 1) * seq_len].tolist()


def test_the_learning_rate_of_the_anneal_falls_linearly_to_zero():
    knobs = pretrain(ramp=[], tokens=64 * 100, anneal_tokens=64 * 20, final_lr=0.01)
    plain = pretrain(ramp=[], tokens=64 * 100, final_lr=0.01)
    rates = [learning_rate(step, 100, knobs) for step in range(100)]
    assert rates[:80] == [learning_rate(step, 100, plain) for step in range(80)]
    assert rates[80] == pytest.approx(learning_rate(80, 100, plain))
    assert np.diff(rates[80:]) == pytest.approx(-rates[80] / 20)
    assert rates[99] == pytest.approx(rates[80] / 20)  # zero comes after the last step
    constant = pretrain(ramp=[], tokens=64 * 100, anneal_tokens=64 * 20, schedule="linear", final_lr=1.0)
    assert [learning_rate(step, 100, constant) for step in (2, 50, 79, 80, 90)] == pytest.approx([1e-2] * 4 + [5e-3])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("last", [8, 12])
def test_resuming_across_the_ramp_ends_in_the_same_weights(
    make_model: Callable[[], Llama], shards: Path, tmp_path: Path, last: int
):
    knobs = pretrain(checkpoint_seconds=1e-9, anneal_tokens=192)

    def run(folder: Path, until: int | None) -> Llama:
        def after(step: int, _: Any) -> None:
            if step == until:
                raise KilledError

        model, log = make_model(), Log(folder / "log", "test", quiet=True)
        train(model, open_shards(shards, knobs), NextToken(), knobs, World(), folder / "work", log, "test", after)
        return model

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KilledError):
        run(tmp_path / "cut", last)
    again = run(tmp_path / "cut", None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    lines = [json.loads(line) for line in (tmp_path / "cut" / "log" / "test.jsonl").read_text().splitlines()]
    assert [(line["batch_rows"], line["seq_len"]) for line in lines] == [(2, 4)] * 8 + [(2, 8)] * 8 + [(4, 16)] * 7
