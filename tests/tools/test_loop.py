"""The loop of calls, with an engine whose replies are scripted: single, parallel, nested, several steps, errors."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from puna.errors import PunaError
from puna.infer.engine import Output, Sampling
from puna.text.chat import Chat, Message, ToolCall
from puna.text.tokenizer import Tokenizer
from puna.tools import CALCULATOR, Tool, Toolbox, ToolResult, make_tool
from puna.tools.loop import Dialogue, run_all, stream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the calculator gives the result of an expression " * 20], 300, 16)


class Script:
    """An engine whose replies depend on the last message of the prompt: a dictionary of what it contains."""

    def __init__(self, tokenizer: Tokenizer, replies: dict[str, str]) -> None:
        self.tokenizer, self.replies = tokenizer, replies
        self.numbers: list[int] = []
        self.queue: dict[int, list[int]] = {}
        self.prompts: list[str] = []

    def reply(self, prompt: Sequence[int]) -> list[int]:
        self.prompts.append(self.tokenizer.decode(list(prompt)))
        last = self.prompts[-1].rpartition("\n\n")[0].rpartition("<|start_header_id|>")[0]
        last = last.rpartition("<|start_header_id|>")[2]
        text = next(reply for part, reply in self.replies.items() if part in last)
        tag = text.startswith("<|python_tag|>")
        ids = [self.tokenizer.python_tag_id] if tag else []
        return [*ids, *self.tokenizer.encode(text.removeprefix("<|python_tag|>")), self.tokenizer.eot_id]

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        yield from self.reply(prompt)

    def add(self, prompt: Sequence[int], sampling: Sampling, number: int = 0) -> int:
        if "far too long" in self.tokenizer.decode(list(prompt)):
            raise PunaError("the prompt is too long")
        self.numbers.append(number)
        self.queue[len(self.numbers)] = self.reply(prompt)
        return len(self.numbers)

    def step(self) -> list[Output]:
        outputs = []
        for request, ids in list(self.queue.items()):
            outputs.append(Output(request, [ids.pop(0)], finish=None if ids else "stop"))
            if not ids:
                del self.queue[request]
        return outputs

    def abort(self, request: int) -> None:
        self.queue.pop(request, None)


def call(expression: str) -> str:
    return f'{{"name": "calculator", "parameters": {{"expression": "{expression}"}}}}'


def ask(engine: Any, question: str, toolbox: Toolbox, most: int = 8) -> Dialogue:
    return Dialogue(Chat([Message("user", question)]), toolbox, engine.tokenizer, most)


def test_steps_until_the_answer(tokenizer: Tokenizer):
    """A nested task: the second call needs the first one's result."""
    engine: Any = Script(tokenizer, {"question": call("2 + 3"), '"5"': call("5 * 4"), '"20"': "the result: 20"})
    dialogue = ask(engine, "question", Toolbox([CALCULATOR]))
    pieces = list(stream(engine, dialogue, Sampling()))
    assert [p.arguments["expression"] for p in pieces if isinstance(p, ToolCall)] == ["2 + 3", "5 * 4"]
    assert [p.text for p in pieces if isinstance(p, ToolResult)] == ["5", "20"]
    assert "".join(p for p in pieces if isinstance(p, str)) == "the result: 20"
    assert dialogue.finish == "answer"
    assert [m.role for m in dialogue.chat.messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]


def test_several_calls_run_side_by_side_and_answer_in_order(tokenizer: Tokenizer):
    started: list[str] = []

    def slow(name: str, seconds: float) -> str:
        """Wait."""
        started.append(name)
        deadline = time.monotonic() + 10
        while len(started) < 2 and time.monotonic() < deadline:  # each waits for the other to have begun
            time.sleep(0.001)
        time.sleep(seconds)
        return f"{name} of {len(started)}"

    one = '{"name": "slow", "parameters": {"name": "%s", "seconds": %s}}'
    calls = f"{one % ('a', 0.05)}; {one % ('b', 0)}"
    engine: Any = Script(tokenizer, {"question": calls, "b of 2": "done"})
    dialogue = ask(engine, "question", Toolbox([make_tool(slow)]))
    list(stream(engine, dialogue, Sampling()))
    assert [r.text for r in dialogue.steps[0].results] == ["a of 2", "b of 2"]
    assert all(r.seconds >= 0 for r in dialogue.steps[0].results)


def test_errors_are_told_to_the_model(tokenizer: Tokenizer):
    engine: Any = Script(tokenizer, {
        "question": '{"name": "nothing", "parameters": {}}',
        "there is no tool": '{"name": "calculator", "parameters": {"expression": 3}}',
        "must be of type string": call("1 / 0"),
        "error": "I cannot",
    })  # fmt: skip
    dialogue = ask(engine, "question", Toolbox([CALCULATOR]))
    list(stream(engine, dialogue, Sampling()))
    assert [step.results[0].error for step in dialogue.steps[:-1]] == [True] * 3
    assert dialogue.chat.messages[-1].content == "I cannot"


def test_the_limit_of_steps(tokenizer: Tokenizer):
    engine: Any = Script(tokenizer, {"": call("1")})
    dialogue = ask(engine, "question", Toolbox([CALCULATOR]), most=3)
    run_all(engine, [dialogue], Sampling())
    assert (dialogue.finish, len(dialogue.steps)) == ("steps", 3)


def test_built_in_tools(tokenizer: Tokenizer):
    """Calls in their own form and in JSON's, with an argument that is no text; code after the tag."""
    asked: list[Any] = []

    def search(query: str) -> str:
        asked.append(query)
        return f"found {query}"

    def tool(name: str, argument: str) -> Tool:
        schema = {"name": name, "parameters": {"type": "object", "properties": {argument: {"type": "string"}}}}
        function = search if argument == "query" else lambda code: f"ran {code}"
        return Tool(function, {"type": "function", "function": schema}, builtin=True)

    toolbox = Toolbox([tool("brave_search", "query"), tool("code_interpreter", "code"), CALCULATOR])
    engine: Any = Script(tokenizer, {
        "question": '<|python_tag|>brave_search.call(query="llamas")',
        "found llamas": '{"name": "brave_search", "parameters": {"query": 7}}',
        "found 7": "<|python_tag|>print(1)",
        "ran print(1)": "all done",
    })  # fmt: skip
    dialogue = ask(engine, "question", toolbox)
    assert (dialogue.chat.builtin_tools, len(dialogue.chat.tools or [])) == (["brave_search", "code_interpreter"], 1)
    run_all(engine, [dialogue], Sampling())
    assert asked == ["llamas", "7"]
    assert dialogue.chat.messages[-1].content == "all done"
    assert "Tools: brave_search" in engine.prompts[0]


def test_a_batch_gives_what_single_dialogues_give(tokenizer: Tokenizer):
    replies = {"one": call("1 + 1"), "two": "two", '"2"': call("2 + 2"), '"4"': "four"}
    toolbox = Toolbox([CALCULATOR])
    engine: Any = Script(tokenizer, replies)
    batch = [ask(engine, question, toolbox) for question in ("one", "two", "far too long", "one")]
    run_all(engine, batch, Sampling(), first=100)
    assert [d.finish for d in batch] == ["answer", "answer", "length", "answer"]
    assert engine.numbers == [100, 101, 103, 104, 107, 108, 111]
    for question, dialogue in zip(("one", "two"), batch):
        alone = ask(engine, question, toolbox)
        run_all(engine, [alone], Sampling())
        assert alone.chat == dialogue.chat


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(PunaError, match="two tools are called calculator"):
        Toolbox([CALCULATOR, CALCULATOR])
