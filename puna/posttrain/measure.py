"""What a model does with held-out problems: how often it is right, and whether it knows when not to call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puna.log import Log
from puna.posttrain.sample import MOST_TURNS, Drawn, draw, is_finished
from puna.posttrain.tool_problems import KINDS, Problem
from puna.recipe import Posttrain
from puna.run import figure
from puna.score import proportion
from puna.text.chat import parse
from puna.text.tokenizer import Tokenizer

Marks = dict[str, np.ndarray]
"""By name, a value for every problem or for every message."""


def measure(
    model: Path, problems: Sequence[Problem], knobs: Posttrain, seed: int, log: Log, greedy: bool, tool: bool = True
) -> Marks:
    """One attempt at each problem: greedily to its end, or the first message at the knobs' temperature.

    `first` [problems]: the first message is right. `solved` [problems], greedily only: so are all that follow. `called`
    [problems]: the first message calls. `finished`, `repeats` [messages]: it ended by itself; it says something three
    times.
    """
    changes = {"samples": 1, "temperature": 0.0 if greedy else knobs.temperature}
    turns = MOST_TURNS if greedy else 1
    drawn = draw(model, problems, knobs.model_copy(update=changes), seed, log, tool=tool, turns=turns)
    marks = marks_of(drawn, problems, Tokenizer.load(model))
    return marks if greedy else {name: values for name, values in marks.items() if name != "solved"}


def marks_of(drawn: Sequence[Drawn], problems: Sequence[Problem], tokenizer: Tokenizer) -> Marks:
    first, solved, called = (np.zeros(len(problems), bool) for _ in range(3))
    finished, repeats = [], []
    for each in drawn:
        (answer,), (right,) = each.responses, each.right
        if each.turn == 0:
            first[each.problem] = right
            called[each.problem] = bool(parse(answer, tokenizer).tool_calls)
        solved[each.problem] = right and each.turn == len(problems[each.problem]["calls"])
        finished.append(is_finished(answer, tokenizer))
        repeats.append(says_thrice(answer))
    marks = {"first": first, "solved": solved, "called": called}
    return marks | {"finished": np.array(finished), "repeats": np.array(repeats)}


def says_thrice(ids: Sequence[int], least: int = 12) -> bool:
    """Whether some sequence comes three times in a row, over at least so many tokens."""
    for length in range(1, len(ids) // 3 + 1):
        run = 0  # tokens that are as `length` before
        for here, before in zip(ids[length:], ids):
            run = run + 1 if here == before else 0
            if run >= max(2 * length, least - length):
                return True
    return False


def scores(marks: Marks, problems: Sequence[Problem]) -> dict[str, Any]:
    """Figures with intervals: all problems, and `solved` by kind; how well it knows when not to call."""
    found = {name: proportion(values) for name, values in marks.items() if name != "called"}
    kinds = np.array([problem["kind"] for problem in problems])
    if "solved" in marks:
        found |= {f"solved.{kind}": proportion(marks["solved"][kinds == kind]) for kind in KINDS if kind in kinds}
    return found | {"irrelevance": f1(~marks["called"], kinds == "none")}


def f1(said: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """F1 of a yes-or-no decision: 2s / (1 + s), where s is the share of hits among hits and errors."""
    hits, errors = int((said & true).sum()), int((said != true).sum())
    share = proportion(np.arange(hits + errors) < hits) if hits + errors else figure(0.0, low=0.0, high=1.0)
    value, low, high = (round(2 * share[end] / (1 + share[end]), 4) for end in ("value", "low", "high"))
    return figure(value, "F1", low, high, len(true))
