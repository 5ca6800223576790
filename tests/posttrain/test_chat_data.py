"""Your own chats: read in their forms, thinned out, balanced, and an account of every line."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.log import Log
from puna.posttrain import dpo, sft
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.data import stage
from puna.posttrain.data.balance import cap
from puna.posttrain.data.clean import apologises, drop_apologies, tone
from puna.posttrain.data.forms import InvalidError, Preference, detect, parse
from puna.posttrain.data.read import File, find_files, read, source_digest
from puna.posttrain.data.sample import REASONS, Sample
from puna.posttrain.data.score import drop_low
from puna.posttrain.data.similar import cluster, embed, greedy
from puna.posttrain.data.topics import topic
from puna.posttrain.preferences import own_pairs, read_pairs
from puna.recipe import Chats, Recipe, parse_recipe
from puna.run import BY_NAME, Run
from puna.text.chat import Chat, Message, render
from puna.text.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "hi"}]
TOLD = [*ASKED, {"role": "assistant", "content": "hello"}]


def chat(question: str, answer: str) -> Chat:
    return Chat([Message("user", question), Message("assistant", answer)])


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("openai", {"messages": TOLD}),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, TOLD[1]]}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
        ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}),
        ("alpaca", {"instruction": "hi", "response": "hello"}),
        ("completion", {"prompt": "hi", "completion": "hello"}),
        ("completion", {"prompt": ASKED, "completion": TOLD[1:]}),
        ("completion", {"question": "hi", "answer": "hello"}),
        ("preference", {"prompt": "hi", "chosen": "hello", "rejected": "no"}),
        ("preference", {"chosen": TOLD, "rejected": [*ASKED, {"role": "assistant", "content": "no"}]}),
        ("preference", {"prompt": ASKED, "chosen": TOLD[1:], "rejected": [{"role": "assistant", "content": "no"}]}),
        (
            "preference",
            {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        ),
        (
            "preference",
            {
                "conversations": [{"from": "human", "value": "hi"}],
                "chosen": {"from": "gpt", "value": "hello"},
                "rejected": {"from": "gpt", "value": "no"},
            },
        ),
    ],
)
def test_every_form_gives_the_same_chat(form: str, record: dict[str, Any]):
    assert detect(record) == form
    found = parse(record)
    assert found == parse(record, form)
    if isinstance(found, Preference):
        assert found.rejected == Message("assistant", "no")
        found = found.best
    assert found == chat("hi", "hello")


def test_systems_histories_inputs_and_edits_are_read():
    record = {"system": "s", "history": [["a", "b"]], "instruction": "c", "input": "d", "output": "e"}
    found = parse(record)
    assert isinstance(found, Chat)
    assert [(each.role, each.content) for each in found.messages] == [
        ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c\n\nd"), ("assistant", "e")
    ]  # fmt: skip
    found = parse({"prompt": "hi", "chosen": "a", "rejected": "b", "edited": "c", "strength": "slightly better"})
    assert isinstance(found, Preference)
    assert (found.edited, found.strength) == (Message("assistant", "c"), "slightly better")


def test_calls_are_the_same_in_openai_and_sharegpt():
    schema = {"type": "function", "function": {"name": "f", "parameters": {}}}
    call = {"name": "f", "arguments": {"x": 1}}
    openai = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [{"function": call}]}]
    openai += [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]
    turns = [("human", "hi"), ("function_call", json.dumps(call)), ("observation", "2"), ("gpt", "two")]
    sharegpt = [{"from": who, "value": value} for who, value in turns]
    found = parse({"messages": openai, "tools": [schema]})
    assert found == parse({"conversations": sharegpt, "tools": json.dumps([schema])})
    assert isinstance(found, Chat)
    assert found.tools == [schema]


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"text": "hi"}, "form", "keys text fit none"),
        ({"messages": "hi"}, "form", "no list of messages"),
        ({"messages": ASKED}, "roles", "ends with the user's"),
        ({"messages": [{"content": "hi"}]}, "form", "'role' is missing"),
        ({"messages": [{"role": "critic", "content": "hi"}]}, "roles", "'critic' is none of"),
        ({"messages": TOLD[1:]}, "roles", "message 1 is the assistant's after the start"),
        ({"messages": ASKED + TOLD}, "roles", "message 2 is the user's after the user's"),
        ({"messages": [*TOLD, {"role": "tool", "content": "x"}]}, "roles", "message 3 is the tool's"),
        ({"messages": [{"role": "user", "content": 3}, TOLD[1]]}, "form", "content=3 is not text"),
        ({"messages": TOLD, "label": False}, "label", "not liked"),
        ({"instruction": "hi", "output": " "}, "empty", "message 2, the assistant's, is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "tie", "the chosen answer is the rejected one"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2}, "tie", "no higher"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty", "answer is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "strength": "much"}, "form", "strength = 'much'"),
        (
            {"chosen": TOLD, "rejected": [{"role": "user", "content": "ho"}, TOLD[1]]},
            "dialogues",
            "differ before the last message",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_said(record: dict[str, Any], reason: str, detail: str):
    with pytest.raises(InvalidError) as error:
        parse(record)
    assert error.value.reason == reason
    assert detail in error.value.detail
    assert reason in REASONS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls"]), values)
    ),
)
KEYS = ["messages", "conversations", "instruction", "output", "prompt", "completion", "chosen", "rejected", "tools"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_no_line_stops_the_reading(record: dict[str, Any]):
    try:
        reason = None if isinstance(parse(record), Chat | Preference) else "neither"
    except InvalidError as error:
        reason = error.reason
    assert reason is None or reason in REASONS


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_lines_of_plain_and_packed_files_are_numbered(ending: str, tmp_path: Path):
    path = tmp_path / f"mine.v1.jsonl{ending}"
    content = (
        json.dumps({"messages": TOLD}).encode()
        + b'\n\n\xff\n[1]\n{"x": 1}\n{"instruction": "\\ud800", "output": "a"}\n'
    )
    with pa.output_stream(str(path), compression={"": None, ".gz": "gzip", ".zst": "zstd"}[ending]) as handle:
        handle.write(content)
    (file,) = find_files([str(tmp_path)])
    lines = list(read(file))
    assert [(line.source, line.number) for line in lines] == [("mine", n) for n in (1, 3, 4, 5, 6)]
    assert [getattr(line.found, "reason", "kept") for line in lines] == ["kept", "json", "json", "form", "json"]


def test_sources_that_cannot_be_used(tmp_path: Path):
    with pytest.raises(PunaError, match=r"'alpaca:.*missing' names no file"):
        find_files([f"alpaca:{tmp_path / 'missing'}"])
    path = tmp_path / "other.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(PunaError, match=r"other\.jsonl: no line can be used; line 1: form: keys text"):
        list(read(File(path, None)))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps({"messages": TOLD}).encode() * 2000)[:60])
    with pytest.raises(PunaError, match=r"cut\.jsonl\.gz cannot be unpacked"):
        list(read(File(tmp_path / "cut.jsonl.gz", None)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("Great! Super! Wow! Yes! Go!", "exclamations"),
        ("Hello! How can I help?", None),
        ("```\nif (a != b) { f(!x); } // !!!\n```\nThis compares.", None),
        ("\U0001f600 yes \U0001f600", "emoji"),
        ("word " * 200 + "\U0001f600 \U0001f680", None),
    ],
)
def test_tone(answer: str, reason: str | None):
    found = tone(chat("q", answer), Chats())  # pyright: ignore[reportCallIssue]
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(("kept", "share"), [(0, 0.0), (10, 0.1), (30, 0.25), (40, 1.0)])
def test_apologies_make_up_a_share_of_what_stays(kept: int, share: float):
    samples = [
        Sample(chat(f"{i}", "I'm sorry, no." if i < 40 else "Sure."), "s", i, quality=i / 100) for i in range(130)
    ]
    stay, dropped = drop_apologies(samples, share)
    sorry = [sample.line for sample in stay if apologises(sample.chat)]
    assert sorry == list(range(40 - kept, 40))  # the best of them
    assert len(sorry) <= share * len(stay)
    assert len(dropped) == 40 - kept
    assert not apologises(chat("I'm sorry", "Never mind; sorry is a word."))


@pytest.mark.parametrize(
    ("question", "label"),
    [
        ("Write a Python function with a loop over an array", "code/programming"),
        ("Find the radius of the circle and the angle of the triangle", "math/geometry"),
        ("Translate this into French: good day", "language/translation"),
        ("hm", "general/other"),
    ],
)
def test_topics(question: str, label: str):
    assert topic(chat(question, "print(1)")) == label


def test_the_reward_models_best_stay():
    samples = [Sample(chat("q", str(i)), "s", i) for i in range(200)]
    scores = np.random.default_rng(0).permutation(200).astype(float)
    kept, dropped = drop_low(samples, scores, 0.75)
    assert {sample.line for sample in kept} == {int(i) for i in np.argsort(scores)[-50:]}
    assert len(dropped) == 150
    assert samples[int(scores.argmax())].quality == 1.0
    assert samples[int(scores.argmin())].quality == 0.005


def test_embedding_and_greedy_agree_with_the_definition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puna.posttrain.data.similar.BUCKETS", 2**22)  # no two terms share one
    words = np.random.default_rng(1).integers(0, 30, (60, 12))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    texts += [f"{text} more" for text in texts[:20]]
    rows = embed(texts)
    terms = [[*text.split(), *map(" ".join, zip(text.split(), text.split()[1:], strict=False))] for text in texts]
    names = sorted({term for each in terms for term in each})
    tf = np.array([[each.count(name) for name in names] for each in terms])
    idf = np.log((1 + len(texts)) / (1 + (tf > 0).sum(0))) + 1
    vectors = np.where(tf > 0, (1 + np.log(np.maximum(tf, 1))) * idf, 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    assert np.abs((rows @ rows.T).toarray() - cosines).max() < 1e-5
    kept: list[int] = []
    order = list(np.random.default_rng(2).permutation(len(texts)))
    for i in order:
        if all(cosines[i, j] <= 0.8 for j in kept):
            kept.append(i)
    dropped = greedy(rows, order, 0.8)
    assert set(order) - set(dropped) == set(kept)
    assert len(dropped) >= 15
    assert all(cosine > 0.8 and other in kept for other, cosine in dropped.values())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    texts = [f"number {i % 37} of {i % 5} things in a row of {i % 11}" for i in range(150)]
    rows, order = embed(texts), list(range(150))
    whole = greedy(rows, order, 0.7)
    monkeypatch.setattr("puna.posttrain.data.similar.BLOCK", 13)
    assert greedy(rows, order, 0.7).keys() == whole.keys()


def test_clusters_hold_what_is_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puna.posttrain.data.similar.CLUSTER", 50)
    topics = ["cats purr softly", "trains run late", "rain falls down", "code compiles fast"]
    texts = [f"{topics[i % 4]} {topics[i % 4]} x{i}" for i in range(200)]
    found = cluster(embed(texts), np.random.default_rng(0))
    assert all(len(set(found[i::4])) == 1 for i in range(4))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 1))
def test_the_cap_is_the_largest_that_keeps_the_share(sizes: list[int], share: float):
    fits = [
        limit
        for limit in range(max(sizes) + 1)
        if max(kept := [min(s, limit) for s in sizes]) <= share * sum(kept) and limit
    ]
    assert cap(sizes, share) == max(fits, default=0)


# -- the stage --


def lines(count: int) -> list[dict[str, Any]]:
    animals = ["cat", "owl", "horse", "snail", "whale"]
    return [
        {"instruction": f"Tell of {animals[i % 5]} {i * 7919}", "output": f"It is {i * 104729} and {i * 31} years old"}
        for i in range(count)
    ]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    mine = [*lines(20), lines(1)[0], {"messages": TOLD, "tools": []}, {"instruction": "q", "output": "Yes! No! Go!"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mine) + "broken\n")
    ranked = [
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"prompt": "a" * 400, "chosen": "b", "rejected": "c"},
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ranked))
    sources = [str(tmp_path / "mine.jsonl"), f"preference:{tmp_path / 'ranked.jsonl'}"]
    return parse_recipe({"name": "x", "chats": {"sources": sources}}, "test")


def test_every_line_is_kept_or_dropped_with_its_reason(recipe: Recipe, out: Path, log: Log, tokenizer: Tokenizer):
    metrics = stage.run(recipe, {}, out, log)
    kept, ranked, dropped = (list(read_jsonl(out / f"{n}.jsonl")) for n in ("chats", "preferences", "dropped"))
    assert [line["line"] for line in kept] == [*range(1, 21), 22]
    assert Counter(line["reason"] for line in dropped) == {"duplicate": 1, "exclamations": 1, "json": 1}
    seen = sorted((line["source"], line["line"]) for line in kept + ranked + dropped)
    assert seen == [("mine", n) for n in range(1, 25)] + [("ranked", 1), ("ranked", 2)]
    assert {name: value["value"] for name, value in metrics.items()} == {
        "chats.read": 26, "chats.kept": 21, "chats.preferences": 2,
        "chats.dropped.json": 1, "chats.dropped.duplicate": 1, "chats.dropped.exclamations": 1,
    }  # fmt: skip
    assert to_chat(kept[-1]).messages == [Message("user", "hi"), Message("assistant", "hello")]
    (pair,) = own_pairs(out / "preferences.jsonl", tokenizer, 480)  # the other is too long
    assert pair.prompt + pair.chosen == render(chat("hi", "hello"), tokenizer).ids
    assert pair.prompt + pair.rejected == render(chat("hi", "no"), tokenizer).ids
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    stage.run(recipe, {}, out, log)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_thinning_keeps_the_better_one_and_the_shares(recipe: Recipe):
    alike = ["the quick brown fox jumps over the lazy dog again and again today"] * 2
    chats = [Sample(chat("tell", text), "a", i, "t/a", difficulty=i) for i, text in enumerate(alike, 1)]
    chats += [Sample(chat(f"q{i * 7919}", f"a{i * 104729}"), "b", i, f"t/{i % 2}") for i in range(20)]
    knobs = recipe.chats.model_copy(update={"max_source_share": 0.75, "max_topic_share": 0.5})
    kept, dropped = stage.thin(chats, knobs, 0)
    assert [(sample.source, sample.line) for sample in kept if sample.source == "a"] == [("a", 2)]
    assert [each.detail for each in dropped if each.reason == "alike"] == ["cosine 1.000 with a line 2"]
    counts = Counter(sample.source for sample in kept)
    assert counts["b"] == 3  # three quarters of four
    with pytest.raises(PunaError, match=r"chats\.max_source_share = 0\.2: .* 2 groups"):
        stage.thin(chats, knobs.model_copy(update={"max_source_share": 0.2}), 0)


def test_a_recipe_without_chats_is_as_it_was_and_one_with_them_feeds_training(recipe: Recipe, tmp_path: Path):
    plain, own = Run(Recipe(name="x"), tmp_path / "plain"), Run(recipe, tmp_path / "own")
    assert plain.state(BY_NAME["chats"]) == "optional"
    for name in ("sft", "dpo", "rounds"):
        assert "chats" not in plain.needs(BY_NAME[name])
        assert own.needs(BY_NAME[name])["chats"] == "chats"
    before = source_digest(recipe)
    with (tmp_path / "mine.jsonl").open("a") as handle:
        handle.write(json.dumps(lines(30)[-1]) + "\n")
    assert source_digest(recipe) != before


def test_published_files_are_read(shared_data: Callable[[str], Path]):
    expected = {"hh_rlhf_harmless_base_test": (1696, 9), "ultrafeedback_train_clean": (990, 6)}
    for name, counts in expected.items():
        found = list(read(File(shared_data(f"preference/{name}.jsonl.gz"), None)))
        assert Counter(isinstance(line.found, Preference) for line in found) == dict(
            zip((True, False), counts, strict=True)
        )


def test_sft_and_dpo_read_what_the_stage_made(
    recipe: Recipe, out: Path, log: Log, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = tmp_path / "chats"
    made.mkdir()
    stage.run(recipe, {}, made, log)
    tokenizer.save(tmp_path)
    inputs = {"pretrain": tmp_path, "sft": tmp_path, "synthesize": tmp_path, "chats": made}
    monkeypatch.setattr(sft, "fit", lambda knobs, seed, base, chats, *_: {"files": chats})
    assert sft.run(recipe, inputs, out, log)["files"] == [tmp_path / "sft.jsonl", made / "chats.jsonl"]
    monkeypatch.setattr(dpo, "sample_pairs", lambda *_: [])
    monkeypatch.setattr(dpo, "fit", lambda knobs, seed, base, path, *_: {"pairs": read_pairs(path)})
    assert dpo.run(recipe, inputs, out, log)["pairs"] == own_pairs(made / "preferences.jsonl", tokenizer, 8192)
