"""Rows of the corpus are seen once an epoch, in the mix, and chats are packed without leakage."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.model.llama import Llama
from puna.recipe import Pretrain, Training
from puna.train.batches import (
    IGNORE,
    MOST_SOURCES,
    Blend,
    PackedChats,
    Shards,
    blends_of,
    lay_out,
    pack,
    rows_of_step,
    share_rows,
)
from puna.train.loop import rows_of
from puna.train.losses import NextToken

BOS, SEQ = 0, 8
MIX = {"wiki": 0.5, "code": 0.3, "math": 0.2}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three parts; every token but begin_of_text occurs once in the whole corpus."""
    at = 1
    for name, documents in {"wiki": [30, 1, 90, 42], "code": [11, 12, 13, 14, 15], "math": [80]}.items():
        ids = []
        for length in documents:
            ids += [BOS, *range(at, at + length)]
            at += length
        np.array([*ids, BOS], np.uint16).tofile(tmp_path / f"{name}.bin")
    (tmp_path / "shards.json").write_text(json.dumps({"dtype": "uint16"}))
    return tmp_path


def open_shards(folder: Path, rows: int, mix: dict[str, float], max_epochs: float = 9, seed: int = 1) -> Shards:
    return Shards(folder, [Blend(rows, mix)], SEQ, max_epochs, BOS, seed)


def test_no_token_comes_twice_in_an_epoch(shards: Path):
    batches = open_shards(shards, 3 * 20, {"wiki": 1.0}, max_epochs=3)
    assert batches.pieces[0].rows == (30 + 1 + 90 + 42 + 4) // SEQ == 20
    stream = np.fromfile(shards / "wiki.bin", np.uint16)[: 20 * SEQ]
    tokens = batches.rows(range(60)).tokens.numpy().reshape(3, 20 * SEQ)
    for epoch in tokens:
        assert Counter(epoch.tolist()) == Counter(stream.tolist())
    assert not np.array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[1], tokens[2])


def test_labels_are_the_following_tokens_and_never_begin_of_text(shards: Path):
    for name in ("wiki", "code", "math"):
        stream = np.fromfile(shards / f"{name}.bin", np.uint16).astype(int).tolist()
        batches = open_shards(shards, 5, {name: 1.0})
        batch = batches.rows(range(5))
        for tokens, labels in zip(batch.tokens.tolist(), batch.labels.tolist()):
            start = next(i for i in range(len(stream)) if stream[i : i + SEQ] == tokens)
            assert labels == [IGNORE if t == BOS else t for t in stream[start + 1 : start + SEQ + 1]]


def test_document_numbers_change_at_begin_of_text_only(shards: Path):
    batch = open_shards(shards, 9, {"code": 1.0}).rows(range(9))
    changes = batch.documents[:, 1:] != batch.documents[:, :-1]
    assert torch.equal(changes, batch.tokens[:, 1:] == BOS)
    assert changes.any()


def test_the_mix_is_honoured_throughout(shards: Path):
    wiki = set(np.fromfile(shards / "wiki.bin", np.uint16).tolist()) - {BOS}
    batches = open_shards(shards, 40, {"wiki": 0.75, "math": 0.25}, max_epochs=1e6)
    from_wiki = np.array([bool(wiki & set(row)) for row in batches.rows(range(40)).tokens.tolist()])
    assert from_wiki.sum() == 30 == batches.counts["wiki"]
    assert 8 <= from_wiki[:20].sum() <= 19  # shuffled, not one part after the other
    assert [piece.part for piece in batches.pieces] == ["wiki", "math"]


def test_a_part_that_runs_out_gives_its_share_to_the_others(shards: Path):
    batches = open_shards(shards, 20, {"wiki": 0.1, "code": 0.1, "math": 0.8}, max_epochs=1)
    assert batches.counts == {"wiki": 5, "code": 5, "math": 10}
    assert batches.pieces[2].rows == 10


def test_too_little_text_names_the_knobs(shards: Path):
    with pytest.raises(PunaError, match=r"pretrain.tokens asks for 99 rows but pretrain.max_epochs = 1 .* 38"):
        open_shards(shards, 99, MIX, max_epochs=1)
    with pytest.raises(PunaError, match=r"mix names 'law', but the corpus has the parts code, math, wiki"):
        open_shards(shards, 9, {"law": 1.0})


def test_an_empty_part_is_no_obstacle(shards: Path):
    (shards / "law.bin").touch()
    assert open_shards(shards, 4, {"law": 0.5, "math": 0.5}).counts == {"law": 0, "math": 4}


def test_rows_depend_on_seed_and_number_alone(shards: Path):
    one, again, other = (open_shards(shards, 30, MIX, seed=seed) for seed in (1, 1, 2))
    backwards = [again.rows([i]).tokens for i in reversed(range(30))][::-1]
    assert torch.equal(one.rows(range(30)).tokens, torch.cat(backwards))
    assert not torch.equal(one.rows(range(30)).tokens, other.rows(range(30)).tokens)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_any_number_of_processes_covers_a_step_once(make_options: Callable[..., Training], processes: int):
    options = make_options(batch_rows=12, micro_rows=2)
    for step in (0, 1, 7):
        numbers, seq_len = rows_of_step(step, options.stretches(12 * 8))
        assert seq_len == options.seq_len
        micro_batches = [rows_of(numbers, options.micro_rows, rank, processes) for rank in range(processes)]
        assert {len(mine) for mine in micro_batches} <= {6 // processes, -(-6 // processes)}
        rows = [row for mine in micro_batches for micro in mine for row in micro]
        assert rows == list(range(12 * step, 12 * step + 12))


parts = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 100), st.integers(0, 500)), min_size=1)


@given(parts, st.floats(0.3, 6), st.floats(0, 1))
def test_share_rows_properties(parts: dict[str, tuple[int, int]], max_epochs: float, fill: float):
    mix = {part: share / 100 for part, (share, _) in parts.items()}
    cap = {part: int(have * max_epochs) for part, (_, have) in parts.items()}
    rows = int(fill * sum(cap.values()))
    counts = dict(zip(mix, share_rows(rows, mix, cap)))
    assert sum(counts.values()) == rows
    assert all(0 <= counts[part] <= cap[part] for part in mix)
    # nobody waits while another takes more than its share: the parts with room left hold equal counts per share
    roomy = [part for part in mix if counts[part] < cap[part]]
    total = sum(mix[part] for part in roomy)
    left = sum(counts[part] for part in roomy)
    for part in roomy:
        assert abs(counts[part] - left * mix[part] / total) <= 2 * len(mix)


# -- sources, weights and the anneal --

GROUPS = {
    "wiki": [
        {"language": "en", "topic": "art", "source": "x", "start": 0, "tokens": 33},
        {"language": "en", "topic": "law", "source": "x", "start": 33, "tokens": 91},
        {"language": "en", "topic": "law", "source": "y", "start": 124, "tokens": 44},
    ]
}


@pytest.fixture
def grouped(shards: Path) -> Path:
    (shards / "shards.json").write_text(json.dumps({"dtype": "uint16", "groups": GROUPS}))
    return shards


def read_from(batches: Shards, folder: Path, start: int, end: int) -> Counter[int]:
    """How often each token of a range of wiki.bin was read, begin_of_text apart."""
    wanted = set(np.fromfile(folder / "wiki.bin", np.uint16)[start:end].tolist()) - {BOS}
    tokens = batches.rows(range(len(batches))).tokens.flatten().tolist()
    return Counter(token for token in tokens if token in wanted)


def test_every_token_tells_its_source(grouped: Path):
    batches = Shards(grouped, [Blend(40, {"wiki": 0.75, "math": 0.25})], SEQ, 100, BOS, 1)
    assert batches.sources == ("wiki/x", "wiki/y", "math")
    batch = batches.rows(range(40))
    assert batch.sources is not None
    stream = np.fromfile(grouped / "wiki.bin", np.uint16)
    owners = dict.fromkeys(stream[:124].tolist(), 0) | dict.fromkeys(stream[124:].tolist(), 1)
    found = [
        (owners.get(token, 2), source)
        for token, source in zip(batch.tokens.flatten().tolist(), batch.sources.flatten().tolist())
        if token != BOS
    ]
    assert all(owner == source for owner, source in found)
    assert {source for _, source in found} == {0, 1, 2}
    assert any(len(row.unique()) == 2 for row in batch.sources)  # a row that lies across a border


def test_parts_without_groups_or_with_too_many_sources_are_told_whole(shards: Path):
    assert open_shards(shards, 9, MIX).sources == tuple(MIX)
    many = {"wiki": [{"source": str(i), "start": 3 * i} for i in range(MOST_SOURCES + 1)]}
    (shards / "shards.json").write_text(json.dumps({"dtype": "uint16", "groups": many}))
    assert open_shards(shards, 9, MIX).sources == tuple(MIX)


def test_without_weights_the_groups_change_nothing(shards: Path):
    before = open_shards(shards, 60, {"wiki": 1.0}).rows(range(60)).tokens
    (shards / "shards.json").write_text(json.dumps({"dtype": "uint16", "groups": GROUPS}))
    assert torch.equal(open_shards(shards, 60, {"wiki": 1.0}).rows(range(60)).tokens, before)


def test_weights_multiply_the_epochs_of_a_group(grouped: Path):
    weights = {"topic:law": 2.0, "source:y": 2.0}
    batches = Shards(grouped, [Blend(160, {"wiki": 0.75, "math": 0.25}, weights)], SEQ, 100, BOS, 1)
    assert batches.counts == {"wiki": 120, "math": 40}  # weights move nothing between parts
    assert [piece.rows for piece in batches.pieces] == [4, 11, 5, 10]
    epochs = [
        np.mean(list(read_from(batches, grouped, start, end).values()))
        for start, end in [(0, 32), (33, 121), (124, 164)]
    ]
    assert epochs[1] / epochs[0] == pytest.approx(2, abs=0.15)
    assert epochs[2] / epochs[0] == pytest.approx(4, abs=0.3)


def test_weight_zero_leaves_a_group_out_and_caps_hold_for_each_group(grouped: Path):
    batches = Shards(grouped, [Blend(30, {"wiki": 1.0}, {"topic:art": 0.0, "source:y": 9.0})], SEQ, 2, BOS, 1)
    assert not read_from(batches, grouped, 0, 33)
    assert max(read_from(batches, grouped, 124, 168).values()) == 2
    assert len(batches) == 30
    with pytest.raises(PunaError, match="max_epochs = 2 allows 32"):
        Shards(grouped, [Blend(33, {"wiki": 1.0}, {"topic:art": 0.0})], SEQ, 2, BOS, 1)


def test_a_weight_that_fits_nothing_is_an_error(grouped: Path):
    with pytest.raises(PunaError, match=r"'topic:sport', which no document .* there are language:en, source:x"):
        Shards(grouped, [Blend(3, {"wiki": 1.0}, {"topic:sport": 2.0})], SEQ, 2, BOS, 1)


def test_the_anneal_comes_last_from_its_own_mix_and_the_epochs_go_on(grouped: Path):
    first, last = Blend(20, {"wiki": 0.5, "code": 0.5}), Blend(8, {"math": 0.5, "wiki": 0.5}, {"topic:law": 0.0})
    batches = Shards(grouped, [first, last], SEQ, 1, BOS, 1)
    math = set(np.fromfile(grouped / "math.bin", np.uint16).tolist()) - {BOS}
    from_math = [bool(math & set(row)) for row in batches.rows(range(28)).tokens.tolist()]
    assert sum(from_math[20:]) == 4
    assert not any(from_math[:20])
    tokens = Counter(batches.rows(range(28)).tokens.flatten().tolist())
    assert max(count for token, count in tokens.items() if token != BOS) == 1  # one epoch over both blends


def test_the_recipe_names_the_blends():
    knobs = Pretrain(tokens=1000, seq_len=10, batch_rows=4, anneal_tokens=205, anneal_mix={"math": 1.0})  # pyright: ignore
    assert blends_of(knobs) == [Blend(80, knobs.mix, {}), Blend(20, {"math": 1.0}, {})]
    assert blends_of(knobs.model_copy(update={"anneal_tokens": 0})) == [Blend(100, knobs.mix, {})]
    with pytest.raises(ValueError, match="'color:red' = 2; write source:, language: or topic:NAME"):
        Pretrain(weights={"color:red": 2})  # pyright: ignore
    with pytest.raises(ValueError, match="anneal_mix and anneal_weights need anneal_tokens"):
        Pretrain(anneal_mix={"math": 1.0})  # pyright: ignore
    with pytest.raises(ValueError, match=r"anneal_mix={'math': 0.5} must be shares"):
        Pretrain(anneal_mix={"math": 0.5}, anneal_tokens=5)  # pyright: ignore


# -- chats --


def make_chats(count: int, longest: int = 20) -> list[tuple[list[int], list[bool]]]:
    """Chats of different tokens that are learnt from their third token on."""
    random = np.random.default_rng(4)
    lengths = random.integers(3, longest + 1, count)
    return [(random.integers(1, 60, n).tolist(), [i > 1 for i in range(n)]) for n in lengths]


@given(st.lists(st.integers(1, 30), max_size=300), st.integers(30, 60), st.integers(0, 5))
def test_pack_properties(lengths: list[int], room: int, seed: int):
    bins = pack(lengths, room, np.random.default_rng(seed))
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in items) <= room for items in bins)
    if len(bins) <= 64:  # no bin was closed, so no two of them would have fitted into one
        assert sum(2 * sum(lengths[i] for i in items) <= room for items in bins) <= 1


def test_every_chat_comes_whole_once_an_epoch_and_in_a_new_order():
    chats = make_chats(50)
    batches = PackedChats(chats, 24, pad_id=60, epochs=3, seed=0)
    batch = batches.rows(range(len(batches)))
    per_epoch = []
    for rows in torch.arange(len(batches)).chunk(3):
        found = []
        for row in rows.tolist():
            for document in batch.documents[row].unique().tolist():
                tokens = batch.tokens[row][batch.documents[row] == document].tolist()
                if set(tokens) != {60}:
                    found.append(tuple(tokens))
        per_epoch.append(found)
    wanted = sorted(tuple(ids) for ids, _ in chats)
    assert [sorted(found) for found in per_epoch] == [wanted] * 3
    assert len({tuple(found) for found in per_epoch}) == 3


def test_a_longer_chat_is_left_out_and_counted():
    chats = make_chats(10, 20)
    batches = PackedChats([*chats, ([1] * 25, [True] * 25)], 24, 60, 1, 0)
    assert (len(batches.chats), batches.too_long) == (10, 1)
    with pytest.raises(PunaError, match="seq_len = 2 tokens"):
        PackedChats(chats, 2, 60, 1, 0)


def test_lay_out_by_hand():
    batch = lay_out([[([5, 6, 7], [False, True, True]), ([8, 9], [True, False])]], 7, pad_id=1)
    x = IGNORE
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 1, 1]]
    assert batch.labels.tolist() == [[6, 7, x, x, x, x, x]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 2, 2]]


def test_packed_chats_train_as_one_chat_at_a_time(make_model: Callable[[], Llama]):
    chats, loss = make_chats(12), NextToken()
    losses, gradients = [], []
    for rows in ([chats], [[chat] for chat in chats]):
        model = make_model()
        seq_len = max(sum(len(ids) for ids, _ in row) for row in rows) + 3
        batch = lay_out(rows, seq_len, pad_id=60)
        hidden = model.hidden(batch.tokens, documents=batch.documents)
        value = loss(hidden, model.lm_head.weight, batch, loss.counts(batch))
        value.backward()
        losses.append(value.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert ((gradients[0] - gradients[1]).norm() / gradients[1].norm()).item() < 1e-5
