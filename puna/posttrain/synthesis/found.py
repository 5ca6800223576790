"""What synthesis keeps and what it drops, and the models that it asks."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Drop:
    """Something that no chat was made of: of which kind, made of what, and why."""

    kind: str
    name: str
    reason: str
    detail: str = ""


class DropError(Exception):
    """An item is dropped on its way: the code of the reason, and what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


Line = dict[str, Any]
"""A chat in OpenAI's form, with the `source` that `sft.weights` knows it by."""
