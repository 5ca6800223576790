"""Chats as data: messages, calls of tools, and what the model is told before them."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
# Built-in tools and the one argument each takes.
BUILTIN_ARGUMENT = {"brave_search": "query", "wolfram_alpha": "query", "code_interpreter": "code"}


@dataclass
class ToolCall:
    """One call of a tool: a function of the user's, or a built-in tool."""

    name: str
    arguments: dict[str, Any]


@dataclass
class Message:
    """One message. The role "ipython" is taken for "tool"; `learn=False` keeps an answer out of the loss."""

    role: str
    content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    learn: bool = True

    def __post_init__(self) -> None:
        self.role = "tool" if self.role == "ipython" else self.role
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r}: a message is of {', '.join(ROLES)}")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"role={self.role!r}: only the assistant calls tools")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Message":
        """Read a message of the OpenAI chat API, as data sets and chat templates use it."""
        functions = [call.get("function", call) for call in data.get("tool_calls") or []]
        calls = [ToolCall(function["name"], _arguments(function)) for function in functions]
        return cls(data["role"], _text(data.get("content")), calls, data.get("learn", True))

    def to_dict(self) -> dict[str, Any]:
        """Undo `from_dict`; arguments stay a dictionary, as chat templates want them."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            calls = [{"name": call.name, "arguments": call.arguments} for call in self.tool_calls]
            data["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        if not self.learn:
            data["learn"] = False
        return data


def _text(content: str | list[dict[str, Any]] | None) -> str:
    """The API's content: text, a list of parts, or null beside tool calls."""
    if isinstance(content, list):
        others = [part.get("type") for part in content if part.get("type") != "text"]
        if others:
            raise ValueError(f"content has parts of type {others}; only text can be read")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str | None):
        raise ValueError(f"content={content!r:.80} is not text; give it as a string")
    return content or ""


def _arguments(function: dict[str, Any]) -> dict[str, Any]:
    """The API gives arguments as a JSON string, data sets often as an object."""
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        with suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"tool call {function['name']!r}: arguments={arguments!r:.80} is not a JSON object")
    return arguments


@dataclass
class Chat:
    """Messages, and what the model is told before them.

    Attributes:
        tools: JSON schemas of functions in OpenAI's form; None is not the same as an empty list, which turns
            the tool environment on.
        builtin_tools: names out of BUILTIN_ARGUMENT; None or a list, likewise.
        date: what the model takes for today. Without it profile `hf` says 26 Jul 2024 and `meta` nothing.
        tools_in_user_message: list the functions before the first user message, or in the system message.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    builtin_tools: list[str] | None = None
    date: str | None = None
    tools_in_user_message: bool = True
