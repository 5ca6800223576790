"""A step that fails costs the page that it fails on, unless it fails on all."""

from types import SimpleNamespace
from typing import Any

import pytest

from puna.corpus.document import EXCERPT, Document
from puna.corpus.steps import each, take

TOOLS = SimpleNamespace(knobs=SimpleNamespace(page_seconds=60.0))


class PanicError(BaseException):  # as parsers written in Rust raise them
    pass


def pages(count: int) -> list[Document]:
    return [Document(number, f"{number:016x}", "", text="x" * 5000) for number in range(count)]


def mark(page: Document, tools: Any) -> None:
    page.title += "marked"


def test_the_other_pages_of_a_batch_go_on() -> None:
    def break_on_three(batch: list[Document], tools: Any) -> None:
        for page in batch:
            if page.doc == 3:
                raise PanicError("out of bounds")
            page.part = "seen"

    found = pages(12)
    found[5].drop("read", "truncated")
    take((("first", break_on_three), ("second", each(mark))), found, TOOLS)
    poison, dropped = found.pop(3), found.pop(4)
    assert (poison.step, poison.reason, poison.detail) == ("first", "poison-page", "PanicError: out of bounds")
    assert len(poison.text) == EXCERPT
    assert (dropped.step, dropped.part, dropped.title) == ("read", "", "")
    assert {(page.part, page.title, page.reason) for page in found} == {("seen", "marked", "")}


def test_a_step_that_fails_on_all_pages_is_at_fault_itself() -> None:
    def fail(batch: list[Document], tools: Any) -> None:
        raise KeyError("model")

    with pytest.raises(RuntimeError, match=r"step first fails on every page: KeyError\('model'\)"):
        take((("first", fail),), pages(10), TOOLS)
    few = pages(3)
    take((("first", fail),), few, TOOLS)
    assert {page.reason for page in few} == {"poison-page"}, "so few may all be bad"


def test_an_interrupt_is_not_the_page_s_fault() -> None:
    def stop(batch: list[Document], tools: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take((("first", stop),), pages(2), TOOLS)
