"""What a larger model answers, for a smaller one to learn: prompts, several answers to each, the best that holds (4.3).

Answers are filtered by execution where a prompt brings `tests` (Python), by its `answer` where it brings one, and by a
reward model where one is given. Whose answers these are, and what its licence asks, goes with the data (stage.py).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from puna.endpoint import Answer, Asker, GiveUpError, Messages, ask_in_order
from puna.errors import PunaError
from puna.posttrain.data.forms import InvalidError, Preference, parse
from puna.posttrain.synthesis.checks import failing
from puna.posttrain.synthesis.found import Drop, Line
from puna.posttrain.synthesis.replies import one_program, said
from puna.text.message import Chat, Message
from puna.tools import last_number

SOURCE = "teacher"


class Prompt(NamedTuple):
    """What is asked, and how an answer can be checked."""

    name: str
    chat: Chat
    tests: str = ""
    answer: str = ""


def read_prompts(paths: Sequence[Path]) -> Iterator[Prompt | Drop]:
    """The lines of JSONL files (.gz, .zst, .bz2, .lz4 too): {"prompt"} or a chat in any of the published forms, whose
    last answer is left out; with `tests` or an `answer` where there are some. PunaError where a file is missing."""
    seen: set[str] = set()
    for path in paths:
        if not path.is_file():
            raise PunaError(f"synthesize.teacher_prompts: there is no file {path}")
        with BufferedReader(pa.input_stream(str(path))) as lines:
            for number, line in enumerate(lines, 1):
                found = _prompt(f"{path.name} line {number}", line)
                if isinstance(found, Prompt):
                    key = repr(found.chat.messages)
                    found = Drop(SOURCE, found.name, "duplicate") if key in seen else found
                    seen.add(key)
                yield found


def _prompt(name: str, line: bytes) -> Prompt | Drop:
    try:
        record = json.loads(line)
        chat = _chat(record)
        checks = {key: record[key] for key in ("tests", "answer") if isinstance(record.get(key), str)}
    except InvalidError as error:
        return Drop(SOURCE, name, error.reason, error.detail)
    except (ValueError, TypeError, AttributeError) as error:
        return Drop(SOURCE, name, "json", str(error))
    if chat.tools or any(message.tool_calls or message.role == "tool" for message in chat.messages):
        return Drop(SOURCE, name, "tools", "a teacher is asked for text alone")
    return Prompt(name, chat, **checks)


def _chat(record: dict[str, Any]) -> Chat:
    """What comes before the answer that is to be written."""
    if isinstance(record.get("prompt"), str) and not {"completion", "response", "chosen"} & record.keys():
        return Chat([Message("user", record["prompt"])])
    found = parse(record)
    return found.prompt if isinstance(found, Preference) else Chat(found.messages[:-1], tools=found.tools)


def dialogues(
    prompts: Sequence[Prompt], asker: Asker, samples: int, temperature: float, reward_model: Path | None = None
) -> tuple[list[Line], list[Drop]]:
    """The best right one of `samples` answers to each prompt, as a chat."""
    drops: list[Drop] = []
    answered: list[tuple[Prompt, list[str]]] = []

    def work(prompt: Prompt) -> list[Answer]:
        asked: Messages = [{"role": each.role, "content": each.content} for each in prompt.chat.messages]
        return [asker.text(prompt.name, asked, temperature, seed=number) for number in range(samples)]

    with closing(ask_in_order(prompts, work, asker.endpoint.concurrency, asker.stop)) as results:
        for prompt, result in results:
            if isinstance(result, GiveUpError):
                drops.append(Drop(SOURCE, prompt.name, "model", str(result)))
                continue
            whole = list(dict.fromkeys(said(answer.text) for answer in result if answer.finish != "length"))
            right = [text for text in whole if text and is_right(prompt, text)]
            if right:
                answered.append((prompt, right))
            else:
                reason = ("wrong", f"none of {len(whole)} answers holds") if whole else ("length", "all were cut off")
                drops.append(Drop(SOURCE, prompt.name, *reason))
    best = _best(answered, reward_model)
    return [_line(prompt, text) for (prompt, _), text in zip(answered, best)], drops


def is_right(prompt: Prompt, text: str) -> bool:
    """Whether an answer passes what its prompt brings: tests of its program, or the answer that it has to come to."""
    if prompt.tests:
        program = one_program(text)
        return program is not None and failing(program, prompt.tests) is None
    if not prompt.answer:
        return True
    wanted = prompt.answer.strip()
    if (number := last_number(wanted)) == wanted:
        return last_number(text.replace(",", "")) == number
    return wanted.casefold() in text.casefold()


def _best(answered: Sequence[tuple[Prompt, list[str]]], reward_model: Path | None) -> list[str]:
    """Of each prompt's answers the one that the reward model scores highest, the first without one."""
    if reward_model is None or not answered:
        return [texts[0] for _, texts in answered]
    from puna.posttrain.reward_model import Scorer  # here, for it imports torch

    chats = [Chat([*prompt.chat.messages, Message("assistant", text)]) for prompt, texts in answered for text in texts]
    scores = iter(Scorer.load(reward_model).score(chats))
    return [max(((next(scores), -place, text) for place, text in enumerate(texts)))[2] for _, texts in answered]


def _line(prompt: Prompt, text: str) -> Line:
    told = [message.to_dict() for message in [*prompt.chat.messages, Message("assistant", text)]]
    name = f"{xxhash.xxh3_64_intdigest(repr(prompt.chat.messages).encode('utf-8', 'replace')):016x}"
    return {"source": SOURCE, "prompt": name, "messages": told}
