"""The forms in which chats and preferences are published, read into Chat and Preference.

openai      {"messages": [{"role", "content", "tool_calls"?}], "tools"?}
sharegpt    {"conversations": [{"from", "value"}], "system"?, "tools"?}
alpaca      {"instruction", "input"?, "output" or "response", "system"?, "history"?: [[question, answer], ...]}
completion  {"prompt", "completion" or "response"} or {"question", "answer"}
preference  {"chosen", "rejected", "prompt"?, "edited"?, "strength"?}: texts, messages, or whole dialogues
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from puna.text.message import Chat, Message

Record = Mapping[str, Any]
STRENGTHS = ("significantly better", "better", "slightly better", "marginally better")
SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "ipython"), "tool"),
    "system": "system",
}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


class InvalidError(ValueError):
    """A line that is no chat and no preference: the code of the reason, and what is wrong with it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass
class Preference:
    """Two answers to one prompt, and perhaps the chosen one as somebody mended it (section 4.2.1)."""

    prompt: Chat
    chosen: Message
    rejected: Message
    edited: Message | None = None
    strength: str = STRENGTHS[0]

    @property
    def best(self) -> Chat:
        """The chat that the best answer makes."""
        messages = [*self.prompt.messages, self.edited or self.chosen]
        return Chat(messages, tools=self.prompt.tools)


def detect(record: Record) -> str:
    """The form of a line by its keys; InvalidError where they fit none."""
    for form, (keys, _) in FORMS.items():
        if any(all(key in record for key in some) for some in keys):
            return form
    raise InvalidError("form", f"keys {', '.join(map(str, record))[:120]} fit none of the forms {', '.join(FORMS)}")


def parse(record: Record, form: str | None = None) -> Chat | Preference:
    """A line in the named form, or in the one that its keys show. InvalidError says what is wrong with it."""
    try:
        found = FORMS[form or detect(record)][1](record)
        for chat in _chats_of(found):
            check(chat)
    except InvalidError:
        raise
    except KeyError as error:
        raise InvalidError("form", f"key {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidError("form", str(error)) from error
    return found


def check(chat: Chat) -> None:
    """InvalidError where a message is empty, or where the roles do not follow one another as in a dialogue."""
    before = "start"
    for number, message in enumerate(chat.messages, 1):
        if message.role not in _FOLLOWS[before]:
            raise InvalidError("roles", f"message {number} is the {message.role}'s after {_NAMES[before]}")
        if message.role != "tool" and not message.content.strip() and not message.tool_calls:
            raise InvalidError("empty", f"message {number}, the {message.role}'s, is empty")
        before = "calls" if message.tool_calls else message.role
    if before not in ("assistant", "calls"):
        raise InvalidError("roles", f"the chat ends with {_NAMES[before]}, where an answer would be learned")


_FOLLOWS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool", "user"),
    "tool": ("tool", "assistant"),
}
_NAMES = {"start": "the start", "calls": "a call"} | {
    role: f"the {role}'s" for role in ("system", "user", "assistant", "tool")
}


def _chats_of(found: Chat | Preference) -> list[Chat]:
    if isinstance(found, Chat):
        return [found]
    answers = [answer for answer in (found.chosen, found.rejected, found.edited) if answer]
    return [Chat([*found.prompt.messages, answer], tools=found.prompt.tools) for answer in answers]


def _openai(record: Record) -> Chat:
    if record.get("label") is False:
        raise InvalidError("label", "the line is labelled as an answer that was not liked")
    return Chat(_messages(record["messages"]), tools=_tools(record))


def _sharegpt(record: Record) -> Chat:
    return Chat(_system(record) + _messages(record["conversations"]), tools=_tools(record))


def _alpaca(record: Record) -> Chat:
    messages = _system(record)
    for question, answer in record.get("history") or []:
        messages += [Message("user", _string(question)), Message("assistant", _string(answer))]
    asked = [_string(record["instruction"]), _string(record.get("input") or "")]
    answer = _string(record["output"] if "output" in record else record["response"])
    return Chat([*messages, Message("user", "\n\n".join(filter(None, asked))), Message("assistant", answer)])


def _completion(record: Record) -> Chat:
    asked, told = ("prompt", "completion" if "completion" in record else "response")
    if "question" in record:
        asked, told = "question", "answer"
    return Chat([*_side(record[asked], "user"), *_side(record[told], "assistant")], tools=_tools(record))


def _preference(record: Record) -> Preference:
    """The prompt is `prompt`, `messages` or `conversations`, or what the answers' dialogues have in common."""
    prompt = next((record[key] for key in ("prompt", "messages", "conversations") if record.get(key)), None)
    sides = [_side(record[name], "assistant") for name in ("chosen", "rejected", "edited") if record.get(name)]
    if len(sides) < 2:
        raise InvalidError("empty", "the chosen or the rejected answer is empty")
    asked = _system(record) + (_side(prompt, "user") if prompt else sides[0][:-1])
    if any(side[:-1] not in ([], asked, sides[0][:-1]) for side in sides):
        raise InvalidError("dialogues", "the answers' dialogues differ before the last message")
    answers = [side[-1] for side in sides]
    chosen, rejected, edited = answers[0], answers[1], (answers[2] if len(answers) > 2 else None)
    better, worse = record.get("score_chosen"), record.get("score_rejected")
    if chosen == rejected or (better is not None and worse is not None and better <= worse):
        raise InvalidError("tie", "the chosen answer is the rejected one, or scores no higher")
    strength = record.get("strength") or STRENGTHS[0]
    if strength not in STRENGTHS:
        raise InvalidError("form", f"strength = {strength!r}; it is one of {', '.join(STRENGTHS)}")
    return Preference(Chat(asked, tools=_tools(record)), chosen, rejected, edited, strength)


FORMS: dict[str, tuple[tuple[tuple[str, ...], ...], Callable[[Record], Chat | Preference]]] = {
    "preference": ((("chosen", "rejected"),), _preference),
    "openai": ((("messages",),), _openai),
    "sharegpt": ((("conversations",),), _sharegpt),
    "alpaca": ((("instruction", "output"), ("instruction", "response")), _alpaca),
    "completion": ((("prompt", "completion"), ("prompt", "response"), ("question", "answer")), _completion),
}
"""By name: the sets of keys that show it, and what reads it."""


def _messages(turns: Any) -> list[Message]:
    """Messages with role and content, or turns with from and value."""
    if not isinstance(turns, list) or not turns:
        raise InvalidError("form", f"{json.dumps(turns)[:60]} is no list of messages")
    return [_message(turn) for turn in turns]


def _message(turn: dict[str, Any]) -> Message:
    speaker = str(turn["from"] if "from" in turn else turn["role"])
    if speaker not in SPEAKERS:
        raise InvalidError("roles", f"{speaker!r} is none of {', '.join(SPEAKERS)}")
    content = turn.get("value") if "from" in turn else turn.get("content")
    if speaker == "function_call":
        calls = json.loads(_string(content))
        calls = calls if isinstance(calls, list) else [calls]
        return Message.from_dict({"role": "assistant", "tool_calls": calls})
    return Message.from_dict({**turn, "role": SPEAKERS[speaker], "content": content})


def _side(value: Any, role: str) -> list[Message]:
    """One side of a line: a message of `role` as text, a dialogue as text, a message, or messages."""
    if isinstance(value, dict):
        return [_message(value)]
    if isinstance(value, list):
        return _messages(value)
    text = _string(value)
    parts = _TURN.split(text)
    if len(parts) > 1 and not parts[0].strip():
        roles = {"Human": "user", "Assistant": "assistant"}
        return [Message(roles[name], said.strip()) for name, said in zip(parts[1::2], parts[2::2])]
    return [Message(role, text)]


def _system(record: Record) -> list[Message]:
    return [Message("system", _string(record["system"]))] if record.get("system") else []


def _tools(record: Record) -> list[dict[str, Any]] | None:
    tools = record.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InvalidError("form", "tools is no list of JSON schemas")
    return tools or None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidError("form", f"{json.dumps(value)[:60]} is not text")
    return value
