"""Sampling: what is drawn, judged and chosen; and the marks that are made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.log import Log
from puna.posttrain import sample
from puna.posttrain.measure import f1, marks_of, says_thrice, scores
from puna.posttrain.sample import (
    Drawn,
    best_of,
    by_execution,
    chats_of,
    draw,
    pairs_of,
    prompt_of,
    read_drawn,
    write_drawn,
)
from puna.posttrain.tool_problems import KINDS, Problem, problems, solution, start
from puna.recipe import Posttrain
from puna.text.chat import Chat, Message, ToolCall, render
from puna.text.tokenizer import Tokenizer

A, B, C, D = [65], [66], [67, 67], [68]


def ids_of(message: Message, tokenizer: Tokenizer) -> list[int]:
    """A message as the model would write it."""
    chat = Chat([Message("user", "x")], tools=[])
    before = len(render(chat, tokenizer, generation_prompt=True).ids)
    return render(Chat([*chat.messages, message], tools=[]), tokenizer).ids[before:]


class Scripted:
    """An engine whose answers are written before: for each prompt it is asked for in turn."""

    def __init__(self, tokenizer: Tokenizer, script: dict[tuple[int, ...], list[list[int]]]) -> None:
        self.tokenizer, self.script = tokenizer, script
        self.numbers: list[list[int]] = []

    def generate(self, prompts: list[list[int]], sampling: Any, n: int, numbers: list[int]) -> list[list[list[int]]]:
        self.numbers.append(numbers)
        return [self.script[tuple(prompt)][:n] for prompt in prompts]


@pytest.fixture
def nested() -> Problem:
    return next(problem for problem in problems("train", KINDS, 8, 20, 0) if problem["kind"] == "nested")


def test_a_problem_goes_on_with_its_first_right_answer(
    nested: Problem, tokenizer: Tokenizer, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    single = problems("train", ("single",), 1, 20, 3)[0]
    script: dict[tuple[int, ...], list[list[int]]] = {}
    wrong = [ids_of(Message("assistant", "I do not know."), tokenizer), [1, 2, 3]]
    messages = list(solution(nested))
    for at, message in enumerate(messages):
        if message.role == "assistant":
            prompt = prompt_of(Chat(messages[:at], tools=start(nested).tools), tokenizer)
            script[tuple(prompt)] = [wrong[0], ids_of(message, tokenizer), wrong[1]]
    script[tuple(prompt_of(start(single), tokenizer))] = [wrong[0]] * 3
    engine = Scripted(tokenizer, script)
    monkeypatch.setattr(sample.Engine, "load", lambda *arguments, **options: engine)
    monkeypatch.setattr(sample, "run_jobs", lambda function, jobs, log, what: [function(*job) for job in jobs])
    drawn = draw(model_folder, [single, nested], Posttrain(samples=3), 0, Log(tmp_path, "test", quiet=True))  # pyright: ignore[reportCallIssue]
    assert [(each.problem, each.turn, each.right, each.chosen) for each in drawn] == [
        (0, 0, [False] * 3, None),
        (1, 0, [False, True, False], 1),
        (1, 1, [False, True, False], 1),
        (1, 2, [False, True, False], 1),
    ]
    assert engine.numbers == [[0, 1], [1], [1]]  # the draws of problem 1 do not depend on whether problem 0 goes on
    write_drawn(tmp_path / "drawn.jsonl", drawn)
    assert read_drawn(tmp_path / "drawn.jsonl") == drawn
    (chat,) = chats_of([single, nested], drawn, tokenizer)
    assert chat["messages"] == [message.to_dict() for message in messages]
    pairs = pairs_of(drawn, 2)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [
        (each.responses[1], other) for each in drawn[1:] for other in wrong
    ]


def test_a_problem_that_broke_off_is_learned_as_far_as_it_came(tokenizer: Tokenizer):
    asked = problems("train", ("nested",), 4, 20, 0)
    said = [[each for each in solution(problem) if each.role == "assistant"] for problem in asked]
    answers = [[ids_of(message, tokenizer) for message in messages] for messages in said]
    drawn = [Drawn(0, turn, [1], [answer], [True], 0) for turn, answer in enumerate(answers[0])]
    for number in (1, 2):
        drawn += [Drawn(number, 0, [1], [answers[number][0]], [True], 0), Drawn(number, 1, [1], [[65]], [False], None)]
    drawn.append(Drawn(3, 0, [1], [[65]], [False], None))  # nothing of it was right
    first, second = chats_of(asked, drawn, tokenizer, together=8)
    began = [[each.to_dict() for each in list(solution(problem))[:2]] for problem in asked]
    assert first["messages"] == [*(each.to_dict() for each in solution(asked[0])), *began[1]]
    assert second["messages"] == began[2]


def test_a_problem_that_no_answer_solves_is_sampled_again(
    tokenizer: Tokenizer, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    easy, hard, harder = problems("train", ("none",), 3, 20, 0)
    wrong, solutions = [65], [ids_of(list(solution(each))[-1], tokenizer) for each in (easy, hard, harder)]
    by_seed: dict[int, list[tuple[int, ...]]] = {}

    def answers(prompts: list[list[int]], sampling: Any, n: int, numbers: list[int]) -> list[list[list[int]]]:
        asked = by_seed.setdefault(sampling.seed, [])
        asked += [tuple(prompt) for prompt in prompts]
        solved = {0: solutions[0], 1: solutions[1]}.get(len(by_seed) - 1)
        return [[wrong] * (n - 1) + [solved or wrong] for _ in prompts]

    engine = Scripted(tokenizer, {})
    monkeypatch.setattr(engine, "generate", answers)
    monkeypatch.setattr(sample.Engine, "load", lambda *arguments, **options: engine)
    monkeypatch.setattr(sample, "run_jobs", lambda function, jobs, log, what: [function(*job) for job in jobs])
    knobs = Posttrain(samples=2)  # pyright: ignore[reportCallIssue]
    drawn = draw(model_folder, [easy, hard, harder], knobs, 0, Log(tmp_path, "test", quiet=True), retries=2)
    assert [each.right for each in drawn] == [[False, True], [False] * 3 + [True], [False] * 6]
    assert [each.chosen for each in drawn] == [1, 3, None]
    prompts = [tuple(prompt_of(start(each), tokenizer)) for each in (easy, hard, harder)]
    assert list(by_seed.values()) == [prompts, prompts[1:], prompts[2:]]  # each time with a seed of its own


def test_an_unfinished_answer_is_wrong(tokenizer: Tokenizer):
    assert not sample.is_finished([], tokenizer)
    assert not sample.is_finished([65], tokenizer)
    assert sample.is_finished([65, tokenizer.eot_id], tokenizer)


def test_pairs_are_of_different_answers():
    drawn = [
        Drawn(0, 0, [1], [A, B, A, C, B], [True, False, True, True, False], 0),
        Drawn(1, 0, [2], [A, B], [True] * 2, 0),
    ]
    assert [(pair.chosen, pair.rejected) for pair in pairs_of(drawn, 9)] == [(A, B), (C, B)]
    assert len(pairs_of(drawn, 1)) == 1


class ByFirst:
    """A reward model that likes high tokens."""

    def score_responses(self, conversations: list[tuple[list[int], list[list[int]]]]) -> list[list[float]]:
        return [[float(response[0]) for response in responses] for _, responses in conversations]


def test_the_best_of_several_beside_a_random_pick():
    drawn = [
        Drawn(0, 0, [1], [A, B, C, D], [False, False, False, True], None),
        Drawn(0, 1, [1], [A], [True], None),  # not a first answer
        Drawn(1, 0, [1], [A, B], [True, False], None),
    ]
    random, best = best_of(ByFirst(), drawn)  # pyright: ignore[reportArgumentType]
    assert random.tolist() == [0.25, 0.5]
    assert best.tolist() == [True, False]
    assert by_execution([], [], [each.right for each in drawn]) == [3, 0, 0]


def test_marks_of_attempts(tokenizer: Tokenizer):
    found = problems("train", KINDS, 4, 20, 0)
    end = tokenizer.eot_id
    drawn = [
        Drawn(0, 0, [1], [ids_of(Message("assistant", tool_calls=[ToolCall("f", {})]), tokenizer)], [True], 0),
        Drawn(0, 1, [1], [[65, end]], [True], 0),
        Drawn(1, 0, [1], [[65, end]], [False], None),
        Drawn(2, 0, [1], [[66] * 12], [False], None),
        Drawn(3, 0, [1], [[65, end]], [True], 0),
    ]
    marks = {name: values.tolist() for name, values in marks_of(drawn, found, tokenizer).items()}
    assert marks == {
        "first": [True, False, False, True],
        "solved": [True, False, False, True],
        "called": [True, False, False, False],
        "finished": [True, True, True, False, True],
        "repeats": [False, False, False, True, False],
    }
    figures = scores({name: np.array(values) for name, values in marks.items()}, found)
    assert [figures[f"solved.{kind}"]["value"] for kind in KINDS] == [1.0, 0.0, 0.0, 1.0]
    assert figures["irrelevance"]["value"] == 0.5  # of three that did not call one needed none: precision 1/3, recall 1


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 2, 3, 4] * 3, True),
        ([9, 8, *[1, 2, 3, 4] * 3, 5], True),
        ([1, 2, 3, 4] * 2, False),
        ([7] * 11, False),
        ([7] * 12, True),
        ([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 5], False),
        ([], False),
    ],
)
def test_says_thrice(ids: list[int], found: bool):
    assert says_thrice(ids) == found


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    random = np.random.default_rng(0)
    said, true = random.random(500) < 0.4, random.random(500) < 0.5
    precision, recall = (said & true).sum() / said.sum(), (said & true).sum() / true.sum()
    found = f1(said, true)
    assert found["value"] == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-4)
    assert found["low"] < found["value"] < found["high"]
    assert f1(np.zeros(3, bool), np.zeros(3, bool))["value"] == 0.0
