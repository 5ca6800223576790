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


@pytest.mark.parametrize(
    ("line", "what"), [("{'a': 1}", "is not JSON"), ("[1]", "is not an object"), ("", "is not JSON")]
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, what: str):
    (tmp_path / "bad.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(PunaError, match=rf"bad\.jsonl line 2 {what}"):
        list(read_jsonl(tmp_path / "bad.jsonl"))
