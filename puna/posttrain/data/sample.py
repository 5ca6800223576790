"""A chat with where it comes from and what was found out about it, and the reasons for which one is dropped."""

from dataclasses import dataclass
from typing import Any

from puna.text.message import Chat, Message

REASONS = {
    "json": "the line is not a JSON object",
    "form": "the line is in no form that is known, or a part of it is missing",
    "label": "the line is an answer that was marked as not liked",
    "roles": "the roles do not follow one another as in a dialogue that ends with an answer",
    "empty": "a message is empty",
    "tie": "neither answer is better",
    "dialogues": "the answers' dialogues differ before the last message",
    "duplicate": "the same was read before",
    "emoji": "the assistant writes too many emoji",
    "exclamations": "the assistant writes too many exclamation marks",
    "apologies": "the assistant apologises, as in too many chats",
    "quality": "the reward model scores it below the quantile, and no judge gives it all points",
    "alike": "a better chat is too much like it",
    "source": "its source has too large a share",
    "topic": "its topic has too large a share",
}
"""What can become of a line that is not kept, by code."""


@dataclass
class Sample:
    """One chat on its way through the steps."""

    chat: Chat
    source: str
    line: int
    topic: str = ""
    """coarse/fine."""
    quality: float = 1.0
    """The share of the chats that the reward model scores no higher, or of a judge's points; 1 without either."""
    difficulty: float = 1.0

    @property
    def rank(self) -> float:
        """What the best of several is told by (section 4.2.3)."""
        return self.quality * self.difficulty

    @property
    def name(self) -> str:
        return f"{self.source} line {self.line}"


@dataclass
class Dropped:
    source: str
    line: int
    reason: str
    detail: str
    messages: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, sample: Sample, reason: str, detail: str) -> "Dropped":
        messages = [message.to_dict() for message in sample.chat.messages]
        return cls(sample.source, sample.line, reason, detail, messages)


def answers(chat: Chat) -> str:
    """What the assistant says in a chat."""
    return "\n".join(message.content for message in chat.messages if message.role == "assistant")


def plain(messages: list[Message]) -> str:
    """A dialogue as text: what is said, and what is called."""
    calls = [f"{call.name} {call.arguments}" for message in messages for call in message.tool_calls]
    return "\n".join([message.content for message in messages] + calls)
