"""Problems with verifiable solutions by tool calls: single, nested, parallel, and such that need no tool (4.3.5).

A problem says what each message of a right solution gives when its calls are executed, so that an answer is judged by
execution and not by its wording. Operand pairs are divided by their hash, for synthesize.py too: what is evaluated on
occurs nowhere in training, in no order and with no operation.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import xxhash

from puna.text.chat import Chat, Message, ToolCall
from puna.tools import CALCULATOR, calculator, run_call
from puna.train.batches import rng

KINDS = ("single", "nested", "parallel", "none")
WORDS = {"+": "plus", "-": "minus", "*": "times"}
THEN = {"+": "add", "-": "subtract", "*": "multiply by"}
SINGLE = (
    "What is {a} {word} {b}?",
    "What is {a} {op} {b}?",
    "Compute {a} {op} {b}.",
    "{a} {op} {b} = ?",
    "Please work out {a} {word} {b} for me.",
)
NESTED = (
    "What is ({a} {op} {b}) {op2} {c}?",
    "Compute ({a} {op} {b}) {op2} {c}.",
    "Work out {a} {op} {b}, then {then2} {c}.",
    "Take {a} {word} {b} and {then2} {c}.",
)
PARALLEL = (
    "What is {a} {op} {b}, and what is {c} {op2} {d}?",
    "Compute {a} {op} {b} and {c} {op2} {d}.",
    "I need {a} {word} {b} and {c} {word2} {d}.",
)
NUMBERS = (
    ("My numbers are {a} and {b}.", "Your numbers are {a} and {b}."),
    ("Repeat {a} and {b}.", "{a} and {b}"),
    ("Write down {a} {op} {b}, but do not work it out.", "{a} {op} {b}"),
    ("How do I read {a} {op} {b} aloud?", "You say {a} {word} {b}."),
    ("Which sign is in {a} {op} {b}?", "The sign is {op}."),
)
ELSEWHERE = (
    ("What is the weather in {place}?", "I have no tool for that."),
    ("Book a train to {place}.", "I have no tool for that."),
    ("Tell me about {place}.", "I only know how to calculate."),
    ("Do you like {place}?", "I only know how to calculate."),
)
PLACES = (
    *("Lima", "Cusco", "Puno", "Arica", "Quito", "Paris", "Rome", "Oslo", "Kyoto", "Delhi", "Cairo", "Accra", "Lagos"),
    *("Tunis", "Hanoi", "Seoul", "Perth", "Sydney", "Toronto", "Boston", "Chicago", "Denver", "Austin", "Dallas"),
    *("Madrid", "Lisbon", "Porto", "Vienna", "Prague", "Berlin", "Munich", "Zurich", "Geneva", "Milan", "Naples"),
    *("Athens", "Sofia", "Riga", "Tallinn", "Helsinki", "Bergen", "Dublin", "Leeds", "York", "Bath", "Oxford"),
)
Problem = dict[str, Any]
"""kind; question; calls: by message the expression of each call; results: what they give; answer: the last message."""


def group_of(*key: int | str) -> str:
    """The one group that operands in any order, or a word, are used in: train, validation or held_out."""
    text = ",".join(map(str, sorted(key)))  # pyright: ignore[reportArgumentType]
    return {0: "held_out", 1: "validation"}.get(xxhash.xxh3_64_intdigest(text.encode()) % 10, "train")


def problems(group: str, kinds: Sequence[str], count: int, most: int, seed: int, part: str = "") -> list[Problem]:
    """Different problems of a group with operands up to `most`, of the kinds in turn; `part` names an own set."""
    random = rng(seed, "tool problems", group, part)
    found: dict[str, Problem] = {}
    for number in range(20 * count):
        problem = MAKE[kinds[len(found) % len(kinds)]](random, group, most)
        found.setdefault(problem["question"], problem)
        if len(found) == count:
            break
        if number % 20 == 19 and not found:
            break
    return list(found.values())


def _operands(random: np.random.Generator, group: str, most: int) -> tuple[int, str, int]:
    """a, an operation and b, where (a, b) is of the group."""
    while True:
        a, b = (int(value) for value in random.integers(most + 1, size=2))
        if group_of(a, b) == group:
            return a, str(random.choice(list(WORDS))), b


def _expression(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b}"


def _problem(kind: str, question: str, calls: list[list[str]], answer: str) -> Problem:
    results = [[calculator(expression) for expression in message] for message in calls]
    return {"kind": kind, "question": question, "calls": calls, "results": results, "answer": answer}


def _single(random: np.random.Generator, group: str, most: int) -> Problem:
    a, op, b = _operands(random, group, most)
    question = str(random.choice(SINGLE)).format(a=a, op=op, b=b, word=WORDS[op])
    expression = _expression(a, op, b)
    return _problem("single", question, [[expression]], f"The answer is {calculator(expression)}.")


def _nested(random: np.random.Generator, group: str, most: int) -> Problem:
    while True:
        a, op, b = _operands(random, group, most)
        first = _expression(a, op, b)
        between = int(calculator(first))
        # the result is an operand, too: what goes with it is of the group
        if partners := [c for c in range(most + 1) if group_of(between, c) == group]:
            break
    c, op2 = int(random.choice(partners)), str(random.choice(list(WORDS)))
    second = _expression(between, op2, c)
    wording = str(random.choice(NESTED))
    question = wording.format(a=a, op=op, b=b, c=c, op2=op2, word=WORDS[op], then2=THEN[op2])
    return _problem("nested", question, [[first], [second]], f"The answer is {calculator(second)}.")


def _parallel(random: np.random.Generator, group: str, most: int) -> Problem:
    a, op, b = _operands(random, group, most)
    c, op2, d = _operands(random, group, most)
    wording = str(random.choice(PARALLEL))
    question = wording.format(a=a, op=op, b=b, c=c, d=d, op2=op2, word=WORDS[op], word2=WORDS[op2])
    calls = [_expression(a, op, b), _expression(c, op2, d)]
    return _problem(
        "parallel", question, [calls], f"The answers are {calculator(calls[0])} and {calculator(calls[1])}."
    )


def _none(random: np.random.Generator, group: str, most: int) -> Problem:
    if random.random() < 0.8:
        a, op, b = _operands(random, group, most)
        question, answer = NUMBERS[int(random.integers(len(NUMBERS)))]
        words = {"a": a, "op": op, "b": b, "word": WORDS[op]}
    else:
        question, answer = ELSEWHERE[int(random.integers(len(ELSEWHERE)))]
        words = {"place": str(random.choice([place for place in PLACES if group_of(place) == group]))}
    return _problem("none", question.format(**words), [], answer.format(**words))


MAKE: dict[str, Callable[[np.random.Generator, str, int], Problem]] = {
    "single": _single,
    "nested": _nested,
    "parallel": _parallel,
    "none": _none,
}


# -- chats -------------------------------------------------------------------------------------------------------------


def solution(problem: Problem, tool: bool = True) -> Iterator[Message]:
    """The messages of a right solution: calls, their results, the answer; without the tool the answer alone."""
    yield Message("user", problem["question"])
    for calls, results in zip(problem["calls"], problem["results"]) if tool else ():
        yield Message("assistant", tool_calls=[ToolCall(CALCULATOR.name, {"expression": each}) for each in calls])
        yield from (Message("tool", result) for result in results)
    yield Message("assistant", problem["answer"])


def dialogues(problems: Sequence[Problem], count: int, most: int, seed: int, tool: bool = True) -> list[dict[str, Any]]:
    """`count` dialogues of 1 to `most` of the problems each, in OpenAI's form; the problems come round again."""
    turns = rng(seed, "dialogues").integers(1, most, size=count, endpoint=True)
    order = rng(seed, "order of problems").permutation(len(problems))
    made, at = [], 0
    for n in turns:
        chosen = [problems[int(order[i % len(order)])] for i in range(at, at + n)]
        at += int(n)
        messages = [message.to_dict() for problem in chosen for message in solution(problem, tool)]
        made.append({"source": "rules", "messages": messages} | ({"tools": [CALCULATOR.schema]} if tool else {}))
    return made


def start(problem: Problem, tool: bool = True) -> Chat:
    return Chat([Message("user", problem["question"])], tools=[CALCULATOR.schema] if tool else None)


# -- judging -----------------------------------------------------------------------------------------------------------


def execute(message: Message) -> list[Message]:
    """The results of a message's calls, as messages."""
    return [Message("tool", run_call(call, [CALCULATOR])) for call in message.tool_calls]


def is_right(problem: Problem, turn: int, message: Message) -> bool:
    """Whether the assistant's message at a turn does what is needed there: calls by their results, text by its
    numbers, and where no tool is needed by its wording."""
    if turn < len(problem["results"]):
        return [result.content for result in execute(message)] == problem["results"][turn]
    if message.tool_calls:
        return False
    if not problem["calls"]:
        return message.content.strip() == problem["answer"]
    return _numbers(message.content) == _numbers(problem["answer"])


def _numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+", text)
