"""Questions to a model whose every reply is scripted: what counts as right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from puna.evals.evals import answer, choose_reply, held_out_texts, solve
from puna.infer.engine import Engine, Sampling
from puna.recipe import Evals
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

KNOBS, GREEDY = Evals(), Sampling()  # pyright: ignore[reportCallIssue]
EOT = "<|eot_id|>"


class Scripted:
    """Replies by what the prompt holds; a reply ends in EOT where the script says so."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
        self.reply, self.asked = reply, []

    def generate(self, prompts: list[list[int]], sampling: Sampling, batch: int) -> list[list[list[int]]]:
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.asked += [(text, sampling) for text in texts]
        replies = [self.reply(text) for text in texts]
        end = [self.tokenizer.eot_id]
        return [[self.tokenizer.encode(r.removesuffix(EOT)) + (end if r.endswith(EOT) else [])] for r in replies]

    def log_probs(self, rows: list[list[int]], batch: int = 64) -> list[torch.Tensor]:
        """Every token costs its place in the alphabet."""
        return [-torch.tensor(row[1:]).float() for row in rows]


def scripted(reply: Callable[[str], str]) -> Any:
    return cast(Engine, Scripted(reply))


def call(expression: str) -> str:
    return json.dumps({"name": "calculator", "parameters": {"expression": expression}})


PROBLEMS = [
    {"task": "tools.single", "question": f"What is {a} * {b}?", "answer": str(a * b)}
    for a, b in ((2, 3), (4, 5), (6, 7), (8, 9), (3, 9), (5, 5))
]


def use_tool(prompt: str) -> str:
    """A model that uses its calculator, in more and less right ways."""
    if "<|start_header_id|>ipython" in prompt:
        result = prompt.rpartition("ipython<|end_header_id|>\n\n")[2].partition(EOT)[0].strip('"')
        return "It is 41." + EOT if result == "42" else f"It is {result}." + EOT
    return {
        "2 * 3": call("2 * 3") + EOT,
        "4 * 5": call("4 + 5") + EOT,  # the wrong call
        "6 * 7": call("6 * 7") + EOT,  # the right call, and then a wrong answer
        "8 * 9": call("8 * 9"),  # a call that does not end
        "3 * 9": call("3 * 9") + call("3 * 9") + EOT,  # two calls
        "5 * 5": "It is 25." + EOT,  # no call at all
    }[prompt.rpartition("What is ")[2].partition("?")[0]]


def test_with_the_tool_the_call_and_the_answer_must_be_right():
    engine = scripted(use_tool)
    marks, told = solve(engine, PROBLEMS, GREEDY, KNOBS, tool=True)
    assert marks.tolist() == [True, False, False, False, False, False]
    assert told[0] == {"question": "What is 2 * 3?", "call": call("2 * 3") + EOT, "reply": "It is 6.", "right": True}
    assert [line["call"] is None for line in told] == [False, False, False, True, True, True]
    assert all('"calculator"' in prompt for prompt, _ in engine.asked)
    assert len(engine.asked) == 6 + 3


def test_without_the_tool_the_answer_alone_counts():
    engine = scripted(lambda prompt: "So 2 * 3 makes 6" + EOT if "2 * 3" in prompt else "It is 25.")
    marks, told = solve(engine, PROBLEMS, GREEDY, KNOBS, tool=False)
    assert marks.tolist() == [True, False, False, False, False, True]
    assert not any("calculator" in prompt for prompt, _ in engine.asked)
    assert [line["call"] for line in told] == [None] * 6


def test_the_likeliest_choice_by_token_is_the_reply():
    questions = [
        {"question": "Q", "choices": ["zz", "aa", "mm"], "answer": 1},
        {"question": "Q", "choices": ["aaaaaaaa", "z"], "answer": 0},  # by its tokens, not by their sum
        {"question": "Q", "choices": ["a", "z"], "answer": 1},
    ]
    marks, told = choose_reply(scripted(str), questions)
    assert [line["reply"] for line in told] == ["aa", "aaaaaaaa", "a"]
    assert marks.tolist() == [True, True, False]


def test_every_task_is_asked_in_its_way():
    tasks = [
        [PROBLEMS[0]],
        [
            {"task": "chat.language", "question": "Which?", "answer": "German"},
            {"task": "chat.language", "question": "And this?", "answer": "French"},
        ],
        [{"task": "chat.title", "question": "Title?", "choices": ["z", "a"], "answer": 1}],
    ]
    engine = scripted(
        lambda prompt: " German \n" + EOT if "Which?" in prompt or "this?" in prompt else use_tool(prompt)
    )
    answered = [one for questions in tasks for one in answer(engine, questions, KNOBS, 1)]
    found = {task: (marks.tolist(), len(replies)) for task, marks, replies in answered}
    assert found == {
        "tools.single.on": ([True], 1),
        "tools.single.sampled": ([True], 1),
        "tools.single.off": ([False], 1),
        "chat.language": ([True, False], 2),
        "chat.title": ([True], 1),
    }
    assert {sampling.temperature for _, sampling in engine.asked} == {0.0, 1.0}


def test_held_out_text_is_mixed_as_the_training_text(tmp_path: Path):
    rows = [
        {"id": f"{i:03}", "part": part, "text": part[0] * 100} for i in range(50) for part in ("math", "code", "law")
    ]
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "held_out.parquet")
    texts = held_out_texts(tmp_path / "held_out.parquet", {"math": 0.75, "code": 0.25, "none": 0.0}, 2000)
    assert [texts.count(letter * 100) for letter in (b"m", b"c", b"l")] == [15, 5, 0]
