"""What synthesis keeps and what it drops, and the models that it asks."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from puna.endpoint import Asker, GiveUpError, ask_in_order


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


class Named(Protocol):
    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=Named)


def make_each(
    items: Sequence[Item], make: Callable[[Item], Line], kind: str, asker: Asker
) -> tuple[list[Line], list[Drop]]:
    """A chat of each item, in their order, or why there is none: `make` raised DropError, or the model gave up. Items
    are worked on side by side, as many as the endpoint allows."""
    lines: list[Line] = []
    drops: list[Drop] = []

    def work(item: Item) -> Line | Drop:
        try:
            return make(item)
        except DropError as drop:
            return Drop(kind, item.name, drop.reason, drop.detail)

    with closing(ask_in_order(items, work, asker.endpoint.concurrency, asker.stop)) as results:
        for item, result in results:
            if isinstance(result, GiveUpError):
                drops.append(Drop(kind, item.name, "model", str(result)))
            elif isinstance(result, Drop):
                drops.append(result)
            else:
                lines.append(result)
    return lines, drops
