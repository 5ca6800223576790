"""Pieces of code in documents of the corpus."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

from puna.posttrain.synthesis.replies import FENCE
from puna.posttrain.synthesis.signatures import block

SHORTEST, LONGEST = 60, 3000
"""Characters of a piece."""
_PYTHON = re.compile(r"^([ \t]*)(?:(?:async[ \t]+)?def|class)[ \t]+\w+[ \t]*[(:]", re.MULTILINE)


class Snippet(NamedTuple):
    document: str
    language: str
    """As the fence says it; "python" for a definition; "" where nothing tells."""
    code: str

    @property
    def name(self) -> str:
        """The same for the same code, whatever comes before it in the corpus."""
        return f"{xxhash.xxh3_64_intdigest(self.code.encode('utf-8', 'replace')):016x}"


def find_snippets(documents: Iterable[tuple[str, str]]) -> Iterator[Snippet]:
    """Fenced blocks of every (id, text), and Python's definitions outside of them; each code once."""
    seen: set[str] = set()
    for document, text in documents:
        for snippet in _pieces(document, text):
            if SHORTEST <= len(snippet.code) <= LONGEST and snippet.name not in seen:
                seen.add(snippet.name)
                yield snippet


def choose(snippets: Iterable[Snippet], count: int, seed: int, part: str) -> list[Snippet]:
    """So many of the pieces, chosen and ordered by their hash: more documents move none of them."""
    key = f"{seed} {part}"
    return sorted(snippets, key=lambda each: xxhash.xxh3_64_intdigest(f"{key} {each.name}".encode()))[:count]


def _pieces(document: str, text: str) -> Iterator[Snippet]:
    end = 0
    if "```" in text:
        for match in FENCE.finditer(text):
            yield Snippet(document, match[1].lower(), textwrap.dedent(match[2]).strip("\n"))
        text = FENCE.sub("\n", text)
    for match in _PYTHON.finditer(text):
        if match.start() >= end:
            code = block(text[match.start() :], len(match[1].expandtabs())).strip("\n")
            end = match.start() + len(code)
            if code.count("\n"):
                yield Snippet(document, "python", code)
