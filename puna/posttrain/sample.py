"""Several answers to each problem from one model, judged by execution, chosen by execution or by a reward model.

An answer is a message: a call, a further call, a reply. A problem goes on with the message that was chosen, as long as
it is a right one or, where a reward model chooses, as long as it calls (section 4.2.2; preferences between single
messages as in 4.3.5).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from puna.infer.cache import BLOCK
from puna.infer.engine import Engine, Sampling
from puna.infer.pool import run_jobs
from puna.log import Log
from puna.posttrain.preferences import Pair
from puna.posttrain.reward_model import Scorer
from puna.posttrain.tool_problems import Problem, execute, is_right, start
from puna.recipe import Posttrain
from puna.text.chat import Chat, Message, parse, render
from puna.text.tokenizer import Tokenizer
from puna.tools import CALCULATOR

JOB = 128
"""Problems that are sampled together."""
ROWS = 128
"""Answers that are sampled side by side."""
MOST_TURNS = 4
"""Messages of the model in one problem, at most."""


class Drawn(NamedTuple):
    """The answers to one prompt: a problem as far as it had come."""

    problem: int
    turn: int
    prompt: list[int]
    responses: list[list[int]]
    right: list[bool]
    chosen: int | None
    """The answer that the problem went on with, or ended in."""


def draw(
    model: Path,
    problems: Sequence[Problem],
    knobs: Posttrain,
    seed: int,
    log: Log,
    reward: Path | None = None,
    tool: bool = True,
    turns: int = MOST_TURNS,
    retries: int = 0,
) -> list[Drawn]:
    """`knobs.samples` answers to every problem at every turn that it reaches, up to so many, and again as many while
    none is right; chosen by the reward model, else by execution."""
    pieces = [(problems[at : at + JOB], at) for at in range(0, len(problems), JOB)]
    jobs = [(model, piece, at, knobs, seed, reward, tool, turns, retries) for piece, at in pieces]
    return [drawn for found in run_jobs(draw_some, jobs, log, "sampling") for drawn in found]


def draw_some(
    model: Path,
    problems: Sequence[Problem],
    at: int,
    knobs: Posttrain,
    seed: int,
    reward: Path | None,
    tool: bool,
    turns: int,
    retries: int,
) -> list[Drawn]:
    """Answers to problems number `at`, at + 1, ..."""
    chats = {at + i: start(problem, tool) for i, problem in enumerate(problems)}
    tokenizer = Tokenizer.load(model)
    longest = max(len(prompt_of(chat, tokenizer)) for chat in chats.values())
    blocks = ROWS * (longest + MOST_TURNS * 2 * knobs.max_tokens) // BLOCK  # what can be needed, and not all memory
    engine = Engine.load(model, rows=ROWS, blocks=blocks)
    choose = by_reward(Scorer.load(reward)) if reward else by_execution
    found: list[Drawn] = []
    for turn in range(turns):
        if not chats:
            break
        numbers, prompts = list(chats), [prompt_of(chat, engine.tokenizer) for chat in chats.values()]
        answers, rights = ([[] for _ in numbers] for _ in range(2))
        for attempt in range(1 + retries):
            again = [i for i, right in enumerate(rights) if not any(right)]
            first_seed = (seed * MOST_TURNS + turn) * (1 + retries)
            sampling = Sampling(knobs.max_tokens, knobs.temperature, seed=first_seed + attempt)
            # what is drawn for a problem depends on its number, not on its company
            asked = [prompts[i] for i in again], sampling, knobs.samples
            for i, drawn in zip(again, engine.generate(*asked, numbers=[numbers[i] for i in again])):
                answers[i] += drawn
                rights[i] += [judge(answer, problems[numbers[i] - at], turn, engine.tokenizer) for answer in drawn]
        picks = choose(prompts, answers, rights)
        for n, prompt, answer, right, pick in zip(numbers, prompts, answers, rights, picks):
            found.append(Drawn(n, turn, prompt, answer, right, pick))
            message = None if pick is None else parse(answer[pick], engine.tokenizer)
            if message and message.tool_calls:
                chats[n].messages += [message, *execute(message)]
            else:
                del chats[n]
    return sorted(found, key=lambda drawn: drawn[:2])


def prompt_of(chat: Chat, tokenizer: Tokenizer) -> list[int]:
    return render(chat, tokenizer, generation_prompt=True).ids


def judge(answer: list[int], problem: Problem, turn: int, tokenizer: Tokenizer) -> bool:
    return is_finished(answer, tokenizer) and is_right(problem, turn, parse(answer, tokenizer))


def is_finished(answer: list[int], tokenizer: Tokenizer) -> bool:
    return bool(answer) and answer[-1] in tokenizer.stop_ids


Chooser = Callable[[list[list[int]], list[list[list[int]]], list[list[bool]]], list[int | None]]


def by_execution(prompts: list[Any], answers: list[Any], rights: list[list[bool]]) -> list[int | None]:
    """The first right answer to each prompt, None where there is none."""
    return [right.index(True) if True in right else None for right in rights]


def by_reward(scorer: Scorer) -> Chooser:
    """The answer to each prompt that the reward model likes best."""

    def choose(prompts: list[list[int]], answers: list[list[list[int]]], rights: list[list[bool]]) -> list[int | None]:
        return [int(np.argmax(scores)) for scores in scorer.score_responses(list(zip(prompts, answers)))]

    return choose


# -- what is made of them ----------------------------------------------------------------------------------------------


def pairs_of(drawn: Sequence[Drawn], most: int) -> list[Pair]:
    """Right answers beside wrong ones to the same prompt, at most so many for each."""
    pairs = []
    for each in drawn:
        right = distinct(answer for answer, right in zip(each.responses, each.right) if right)
        wrong = distinct(answer for answer, right in zip(each.responses, each.right) if not right)
        pairs += [Pair(each.prompt, a, b) for b in wrong for a in right][:most] if right else []
    return pairs


def distinct(answers: Any) -> list[list[int]]:
    return [list(answer) for answer in dict.fromkeys(map(tuple, answers))]


def chats_of(
    problems: Sequence[Problem], drawn: Sequence[Drawn], tokenizer: Tokenizer, together: int = 1
) -> list[dict[str, Any]]:
    """The chosen answers as chats in OpenAI's form: `together` solved problems in one, which are tokens saved, since
    each chat tells of the tools. A problem that broke off, no answer being right, is learned as far as it had come; no
    other can follow it in a chat."""
    chats: dict[int, Chat] = {}
    solved, broken = [], []
    for each in drawn:
        chat = chats.setdefault(each.problem, start(problems[each.problem]))
        if each.chosen is None:
            if each.turn:
                broken.append(each.problem)
            continue
        message: Message = parse(each.responses[each.chosen], tokenizer)
        chat.messages += [message, *execute(message)]
        if not message.tool_calls and is_finished(each.responses[each.chosen], tokenizer):
            solved.append(each.problem)
    groups = [solved[at : at + together] for at in range(0, len(solved), together)]
    for number, problem in enumerate(broken):
        while chats[problem].messages[-1].role == "tool":
            chats[problem].messages.pop()
        if number == len(groups):
            groups.append([])
        groups[number].append(problem)
    return [
        {
            "source": "sampled",
            "messages": [message.to_dict() for n in group for message in chats[n].messages],
            "tools": [CALCULATOR.schema],
        }
        for group in groups
    ]


def best_of(scorer: Scorer, drawn: Sequence[Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """For every first answer: the share of right samples (a random pick), and whether the best-scored one is right."""
    first = [each for each in drawn if each.turn == 0]
    picks = by_reward(scorer)([d.prompt for d in first], [d.responses for d in first], [])
    shares = np.array([np.mean(each.right) for each in first])
    return shares, np.array([each.right[pick or 0] for each, pick in zip(first, picks)])


def write_drawn(path: Path, drawn: Sequence[Drawn]) -> None:
    path.write_text("".join(json.dumps(each._asdict()) + "\n" for each in drawn), encoding="utf-8")


def read_drawn(path: Path) -> list[Drawn]:
    with path.open(encoding="utf-8") as lines:
        return [Drawn(**json.loads(line)) for line in lines]
