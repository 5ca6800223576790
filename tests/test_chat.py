"""Talking to a model whose replies are scripted: what is shown, what is run, what is told back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puna.chat import Conversation, converse
from puna.errors import PunaError
from puna.infer.engine import Sampling
from puna.text.chat import Message, ToolCall
from puna.text.tokenizer import Tokenizer
from puna.tools import CALCULATOR, Limits, Toolbox, ToolResult
from puna.tools.loop import MOST_STEPS

CALL = '{"name": "calculator", "parameters": {"expression": "6 * 7"}}'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the calculator gives the result of an expression " * 20], 300, 16)


class Script:
    """An engine that says what it is told to, and keeps the prompts it was given."""

    def __init__(self, tokenizer: Tokenizer, replies: Sequence[str]) -> None:
        self.tokenizer, self.replies, self.prompts = tokenizer, list(replies), []

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.prompts.append(self.tokenizer.decode(list(prompt)))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        yield from [*self.tokenizer.encode(reply), self.tokenizer.eot_id]


def conversation(tokenizer: Tokenizer, *replies: str, tools: bool = True) -> tuple[Conversation, Any]:
    script: Any = Script(tokenizer, replies)
    return Conversation(script, Toolbox([CALCULATOR] if tools else []), Sampling()), script


def test_text_streams_in_pieces(tokenizer: Tokenizer):
    talk, _ = conversation(tokenizer, "the result of an expression")
    pieces = list(talk.say("Hello"))
    assert len(pieces) > 1
    assert "".join(p for p in pieces if isinstance(p, str)) == "the result of an expression"


def test_a_call_is_run_and_its_result_told_to_the_model(tokenizer: Tokenizer):
    talk, script = conversation(tokenizer, CALL, "6 * 7 = 42")
    said = list(talk.say("What is 6 times 7?"))
    assert said[0] == ToolCall("calculator", {"expression": "6 * 7"})
    assert isinstance(said[1], ToolResult)
    assert said[1].text == "42"
    assert "".join(p for p in said if isinstance(p, str)) == "6 * 7 = 42"
    assert '"42"' in script.prompts[1]
    assert [m.role for m in talk.chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_brace_that_is_no_call_is_shown_after_all(tokenizer: Tokenizer):
    talk, _ = conversation(tokenizer, "{ not a call")
    assert "".join(p for p in talk.say("x") if isinstance(p, str)) == "{ not a call"


def test_a_model_that_only_calls_is_stopped(tokenizer: Tokenizer):
    talk, script = conversation(tokenizer, CALL)
    said = list(talk.say("x"))
    assert len(script.prompts) == MOST_STEPS
    assert "stopped" in str(said[-1])


def test_a_user_cannot_write_a_special_token(tokenizer: Tokenizer):
    class Ids(Script):
        def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
            self.ids = list(prompt)
            yield from super().stream(prompt, sampling)

    script: Any = Ids(tokenizer, ["the"])
    list(Conversation(script, Toolbox(), Sampling()).say("<|eot_id|>" * 3))
    with_text = script.ids.count(tokenizer.eot_id)
    list(Conversation(script, Toolbox(), Sampling()).say("hello"))
    assert with_text == script.ids.count(tokenizer.eot_id)


def test_commands_and_the_end_of_the_input(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys):
    talk, script = conversation(tokenizer, "the result")
    lines = iter(["hello", "/tools", "/new", "again", "/nonsense", ""])

    def give() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", give)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    converse(talk, None)
    shown = capsys.readouterr()
    assert shown.out == "the result\nthe result\n"
    assert "calculator: Work out" in shown.err
    assert "/new starts over" in shown.err
    assert talk.chat.messages == [Message("user", "again"), Message("assistant", "the result")]
    assert len(script.prompts) == 2


def test_nothing_steers_the_terminal(tokenizer: Tokenizer, capsys):
    talk, _ = conversation(tokenizer, "a\x1b[2Jb\x07\tc\nd")
    converse(talk, "x")
    assert capsys.readouterr().out == "a\ufffd[2Jb\ufffd\tc\nd\n"


def test_files_go_to_the_python_tool_and_back(tokenizer: Tokenizer, monkeypatch, tmp_path: Path, capsys):
    script: Any = Script(tokenizer, ["the result"])
    (tmp_path / "in.txt").write_text("given")
    monkeypatch.chdir(tmp_path)
    with Toolbox(python=Limits()) as toolbox:
        talk = Conversation(script, toolbox, Sampling())
        lines = iter(
            [f"/put {tmp_path / 'in.txt'}", "/files", "/get in.txt", "/get none", "/put none", "/new", "/files"]
        )
        try:
            toolbox.put_file("x", b"")
        except PunaError as error:
            pytest.skip(str(error))
        (tmp_path / "out").mkdir()
        monkeypatch.chdir(tmp_path / "out")
        monkeypatch.setattr("builtins.input", lambda: next(lines, "/quit"))
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
        converse(talk, None)
    shown = capsys.readouterr().err
    assert "in.txt: 5 bytes" in shown
    assert shown.count("in.txt: 5 bytes") == 1
    assert "none: FileNotFoundError" in shown
    assert "No such file or directory: 'none'" in shown
    assert (tmp_path / "out" / "in.txt").read_text() == "given"
