"""Chats from JSONL to tokens."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.log import Log
from puna.recipe import Training
from puna.text.chat import Chat, Message, Rendered, render
from puna.text.tokenizer import Tokenizer
from puna.train.batches import rng


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; PunaError names the line of one that cannot be read."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise PunaError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(value, dict):
                raise PunaError(f"{path} line {number} is not an object: {line[:60]!r}")
            yield value


def trained_tokens(knobs: Training, log: Log) -> int:
    """Tokens of all steps of a training that has ended, padding included."""
    return int(log.last("step", 1)) * knobs.batch_tokens


def to_chat(line: dict[str, Any]) -> Chat:
    """A chat in OpenAI's form: messages, and the tools they may use."""
    return Chat([Message.from_dict(message) for message in line["messages"]], tools=line.get("tools"))


def read_chats(
    path: Path, tokenizer: Tokenizer, weights: Mapping[str, float] | None = None, seed: int = 0
) -> list[Rendered]:
    """The chats of a file, each as often as `weights` has its `source`: 2.5 is twice, and once more for every other."""
    chats = []
    for number, line in enumerate(read_jsonl(path)):
        weight = (weights or {}).get(line.get("source", ""), 1.0)
        times = int(weight) + int(rng(seed, "repeat", path.name, number).random() < weight % 1)
        chats += [render(to_chat(line), tokenizer)] * times
    return chats
