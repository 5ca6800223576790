"""Chats from JSONL to tokens."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.text.chat import Chat, Message, Rendered, render
from puna.text.tokenizer import Tokenizer
from puna.tools import Tool


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


def to_chat(line: dict[str, Any]) -> Chat:
    """A chat in OpenAI's form: messages, and the tools they may use."""
    return Chat([Message.from_dict(message) for message in line["messages"]], tools=line.get("tools"))


def prompt(question: str, tools: Sequence[Tool], tokenizer: Tokenizer) -> list[int]:
    """A question as tokens, up to where the answer starts."""
    chat = Chat([Message("user", question)], tools=[tool.schema for tool in tools] or None)
    return render(chat, tokenizer, generation_prompt=True).ids


def read_chats(path: Path, tokenizer: Tokenizer) -> list[Rendered]:
    return [render(to_chat(line), tokenizer) for line in read_jsonl(path)]
