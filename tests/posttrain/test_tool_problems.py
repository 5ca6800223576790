"""Problems with verifiable solutions: their own are right, groups share no operands, execution judges."""

import re
from collections import Counter

import pytest

from puna.posttrain.tool_problems import (
    KINDS,
    Problem,
    dialogues,
    execute,
    group_of,
    is_right,
    problems,
    solution,
    start,
)
from puna.text.chat import Message, ToolCall
from puna.tools import calculator

GROUPS = ("train", "validation", "held_out")


@pytest.fixture(scope="module")
def made() -> dict[str, list[Problem]]:
    return {group: problems(group, KINDS, 400, 30, seed=1) for group in GROUPS}


def call(*expressions: str) -> Message:
    return Message("assistant", tool_calls=[ToolCall("calculator", {"expression": each}) for each in expressions])


def test_every_kind_comes_as_often_and_no_question_twice(made: dict[str, list[Problem]]):
    for found in made.values():
        assert Counter(problem["kind"] for problem in found) == dict.fromkeys(KINDS, 100)
        assert len({problem["question"] for problem in found}) == 400


def test_the_operands_of_a_call_belong_to_one_group(made: dict[str, list[Problem]]):
    seen: dict[str, set[frozenset[int]]] = {}
    for group, found in made.items():
        expressions = [each for problem in found for message in problem["calls"] for each in message]
        pairs = [re.fullmatch(r"(-?\d+) [-+*] (\d+)", each) for each in expressions]
        seen[group] = {frozenset(map(int, pair.groups())) for pair in pairs if pair}
        assert len(expressions) == len(pairs) == 500
    assert not seen["train"] & seen["held_out"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["held_out"]
    assert group_of(3, 4) == group_of(4, 3)


def test_a_solution_is_right_at_every_turn_and_another_problems_is_not(made: dict[str, list[Problem]]):
    for problem in made["held_out"]:
        messages = list(solution(problem))
        answers = [message for message in messages if message.role == "assistant"]
        assert len(answers) == len(problem["calls"]) + 1
        assert all(is_right(problem, turn, message) for turn, message in enumerate(answers))
        assert not is_right(problem, 0, answers[-1]) or problem["kind"] == "none"
        results = [message.content for message in messages if message.role == "tool"]
        assert results == [str(eval(each)) for message in problem["calls"] for each in message]


def test_answers_are_judged_by_what_their_calls_give():
    nested = {
        "question": "",
        "calls": [["3 + 4"], ["7 * 5"]],
        "results": [["7"], ["35"]],
        "answer": "The answer is 35.",
    }
    assert is_right(nested, 0, call("4 + 3"))
    assert not is_right(nested, 0, call("3 + 4", "7 * 5"))
    assert not is_right(nested, 0, call("3 +"))
    assert not is_right(nested, 0, Message("assistant", "The answer is 35."))
    assert is_right(nested, 1, call("5 * 7"))
    assert is_right(nested, 2, Message("assistant", "It is 35, then."))
    assert not is_right(nested, 2, Message("assistant", "It is -35."))
    assert not is_right(nested, 2, call("7 * 5"))
    none: Problem = {"calls": [], "results": [], "answer": "3 + 4"}
    assert is_right(none, 0, Message("assistant", " 3 + 4\n"))
    assert not is_right(none, 0, Message("assistant", "7"))
    assert not is_right(none, 0, call("3 + 4"))
    results = [message.content for message in execute(call("3 + 4", "1 / 0"))]
    assert results[0] == "7"
    assert results[1].startswith("error")


def test_dialogues_hold_solutions_one_after_the_other(made: dict[str, list[Problem]]):
    chats = dialogues(made["train"], 50, 4, seed=2)
    assert len(chats) == 50
    questions = [[m["content"] for m in chat["messages"] if m["role"] == "user"] for chat in chats]
    assert {len(each) for each in questions} == {1, 2, 3, 4}
    by_question = {problem["question"]: problem for problem in made["train"]}
    for chat, asked in zip(chats, questions):
        expected = [message.to_dict() for question in asked for message in solution(by_question[question])]
        assert chat["messages"] == expected
    assert all("tools" not in chat for chat in dialogues(made["train"], 5, 4, seed=2, tool=False))
    assert start(made["train"][0], tool=False).tools is None


def test_small_ranges_have_problems_too():
    assert len(problems("held_out", KINDS, 8, 9, seed=0)) == 8
    everything = problems("held_out", ("single",), 400, 9, seed=0)
    pairs = sum(group_of(a, b) == "held_out" for a in range(10) for b in range(10))
    assert len(everything) == pairs * 3 * 5
    assert calculator(everything[0]["calls"][0][0]) == everything[0]["results"][0][0]
