"""Chats from JSONL to tokens."""

import json
from pathlib import Path

import pytest

from puna.errors import PunaError
from puna.posttrain.chats import read_chats, read_jsonl
from puna.text.tokenizer import Tokenizer

ANSWER = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def test_a_chat_is_learnt_on_the_assistants_tokens(tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "chats.jsonl").write_text(json.dumps(ANSWER) + "\n" + json.dumps(ANSWER | {"tools": []}) + "\n")
    first, second = read_chats(tmp_path / "chats.jsonl", tokenizer)
    learnt = [token for token, learn in zip(first.ids, first.mask) if learn]
    assert tokenizer.decode(learnt) == "Hello<|eot_id|>"
    assert "Environment: ipython" in tokenizer.decode(second.ids)


def test_a_source_is_read_as_often_as_its_weight_says(tokenizer: Tokenizer, tmp_path: Path):
    sources = ["good"] * 10 + ["much"] * 400 + ["bad"] * 10 + [None] * 10
    lines = [ANSWER | ({"source": source} if source else {}) for source in sources]
    for number, line in enumerate(lines):
        line["messages"] = [{"role": "user", "content": f"{line.get('source')} {number}"}, ANSWER["messages"][1]]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    weights = {"good": 3, "much": 0.25, "bad": 0}
    found = [tokenizer.decode(ids) for ids, _ in read_chats(tmp_path / "chats.jsonl", tokenizer, weights, seed=1)]
    counts = {name: sum(f"\n\n{name} " in text for text in found) for name in ("good", "much", "bad", "None")}
    assert (counts["good"], counts["bad"], counts["None"]) == (30, 0, 10)
    assert 70 < counts["much"] < 130
    assert len(set(found)) == 20 + counts["much"]
    again = [tokenizer.decode(ids) for ids, _ in read_chats(tmp_path / "chats.jsonl", tokenizer, weights, seed=1)]
    assert again == found


@pytest.mark.parametrize(
    ("line", "what"), [("{'a': 1}", "is not JSON"), ("[1]", "is not an object"), ("", "is not JSON")]
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, what: str):
    (tmp_path / "bad.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(PunaError, match=rf"bad\.jsonl line 2 {what}"):
        list(read_jsonl(tmp_path / "bad.jsonl"))
