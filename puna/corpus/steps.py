"""A pass as a list of steps: each looks at the pages that are left of a batch, and fills in or drops them."""

from collections.abc import Callable, Sequence
from typing import Any

from puna.corpus.document import Document
from puna.corpus.engine import time_limit

BATCH = 200
"""Pages that a step has before it at once."""
COMMON = 10
"""Pages that do not all break a step by chance."""
DEADLY = "it killed its worker, or took more than corpus.page_seconds or corpus.worker_memory_gb"
"""What is told of a page that the engine had to set aside; the same whatever the worker died of."""

Step = Callable[[list[Document], Any], None]
"""step(pages, tools): none of the pages is dropped yet. It may be called again with some of them."""


def each(function: Callable[[Document, Any], None]) -> Step:
    """A step of a function that looks at one page, with a time limit for each."""

    def step(pages: list[Document], tools: Any) -> None:
        for page in pages:
            with time_limit(tools.knobs.page_seconds):
                function(page, tools)

    return step


def take(steps: Sequence[tuple[str, Step]], pages: list[Document], tools: Any) -> None:
    """Take a batch through the steps. A page on which a step fails is dropped there as a poison-page, whatever it
    holds; an error that all pages of a batch have is the step's own, and is raised."""
    for name, step in steps:
        left = [page for page in pages if not page.reason]
        if left and _error_of(step, left, tools):
            errors = [(page, error) for page in left if not page.reason and (error := _error_of(step, [page], tools))]
            if len(errors) == len(left) >= COMMON:
                raise RuntimeError(f"step {name} fails on every page: {errors[0][1]!r}") from errors[0][1]
            for page, error in errors:
                page.drop(name, "poison-page", f"{type(error).__name__}: {error}")


def _error_of(step: Step, pages: list[Document], tools: Any) -> BaseException | None:
    try:
        with time_limit(tools.knobs.page_seconds * len(pages)):
            step(pages, tools)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # parsers written in Rust panic, which is no Exception
        return error
    return None
