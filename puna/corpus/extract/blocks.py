"""A page as a list of blocks: runs of text between block-level tags, with what the page says about where they stand.

The parser of resiliparse (lexbor) builds the tree that a browser would build; written out again, every tag is closed,
lower case and quoted, so that one pass over its tags with a stack of open elements suffices: linear time, at any depth.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from puna.corpus.extract.entities import unescape
from puna.corpus.extract.formulas import drawn_formula, essence, formula
from puna.corpus.extract.markup import ALWAYS, BESIDE_TEX, FORMULAS, GROUPS, INLINE, TAG, VOID, Markup

MAX_DEPTH = 2000
"""Browsers stop at 512 open elements."""
ALT = re.compile(r' alt="([^"]*)"')
BREAK = "\x1f"  # <br> within a block


class UnusablePageError(ValueError):
    """A page with a reason not to read it."""


class Block(NamedTuple):
    text: str
    tag: str
    """The innermost block-level element; "img" for the alternative text of an image."""
    hints: bytes
    """Bit set over the vocabulary, lowest bits first: what the open elements tell."""
    near: bytes
    """The same of the innermost two block-level elements."""
    links: int
    """Characters inside links."""
    depth: int
    shallowest: int
    """The least depth since the block before."""
    container: int
    """Index of the innermost block-level element."""
    row: int
    """Number of the table row it stands in, from 1; 0 outside of tables."""
    cell: int
    group: int
    """Number of the innermost table, definition list or figure, from 1; 0 outside."""
    preformatted: bool


@dataclass(slots=True)
class Container:
    """A block-level element, and the range of the blocks inside."""

    parent: int
    start: int
    end: int = 0


@dataclass(slots=True)
class _Element:
    """What an open element passes on to the text inside."""

    tag: str = "body"
    hints: int = 0
    near: int = 0
    own: int = 0
    container: int = 0
    row: int = 0
    cell: int = 0
    group: int = 0
    in_link: bool = False
    preformatted: bool = False

    def inline(self, hints: int, preformatted: bool, link: bool) -> "_Element":
        """This, for the text inside an inline element."""
        return _Element(
            self.tag, self.hints | hints, self.near | hints, self.own, self.container, self.row, self.cell, self.group,
            self.in_link or link, self.preformatted or preformatted,
        )  # fmt: skip


def read_blocks(html: str, markup: Markup) -> tuple[list[Block], np.ndarray]:
    """Blocks in the order of the page, and of the block-level elements [containers, 3] int32: the one around, and the
    range of the blocks inside. `html` is a body from markup.head_and_body. Raises UnusablePageError for endless
    depth."""
    markup.forget()
    blocks, containers = _Reader(html, markup).read()
    return blocks, np.array([(c.parent, c.start, c.end) for c in containers], np.int32)


class _Reader:
    def __init__(self, html: str, markup: Markup) -> None:
        self.markup = markup
        self.least_skipped = BESIDE_TEX if 'type="math/tex' in html else ALWAYS
        pieces = TAG.split(html)
        self.texts, self.names, self.attributes = pieces[0::3], pieces[1::3], pieces[2::3]
        self.blocks: list[Block] = []
        self.containers = [Container(-1, 0)]
        self.open = [_Element()]
        self.opened = ["body"]  # the names of these
        self.rows = self.cells = 0
        # The block in the making:
        self.parts: list[str] = []
        self.at = self.open[0]  # where its text began
        self.links = 0
        self.shallowest = 0
        self.pictures: list[str] = []
        self.tex = ""  # the last formula, while nothing follows it

    def read(self) -> tuple[list[Block], list[Container]]:
        names, attributes, texts = self.names, self.attributes, self.texts
        stack, opened, known = self.open, self.opened, self.markup.tags
        if texts[0] and not texts[0].isspace():
            self.add(texts[0])
        position, count = 0, len(names)
        while position < count:
            name = names[position]
            if name[0] == "/":
                if (opened[-1] == name[1:] and len(opened) > 1) or self.recover(name[1:]):
                    if opened[-1] in INLINE:
                        opened.pop()
                        stack.pop()
                    else:
                        self.close()
            elif name in VOID:
                self.void(name, attributes[position])
            else:
                tag = name + attributes[position]
                hints, skipped, preformatted = known.get(tag) or self.markup.traits(name, attributes[position])
                if skipped >= self.least_skipped:
                    end = self.end_of(position)
                    self.formula(position, end)
                    position = end
                elif name in INLINE:
                    opened.append(name)
                    here = stack[-1]
                    stack.append(
                        here.inline(hints, preformatted, name == "a") if hints or preformatted or name == "a" else here
                    )
                else:
                    self.enter(name, hints, preformatted)
            position += 1
            text = texts[position]
            if text and (self.parts or not text.isspace() or stack[-1].preformatted):  # code may begin with blanks
                self.add(text)
        while len(opened) > 1:
            self.close()
        self.flush()
        self.containers[0].end = len(self.blocks)
        return self.blocks, self.containers

    def enter(self, name: str, hints: int, preformatted: bool) -> None:
        """Open a block-level element."""
        here = self.open[-1]
        self.opened.append(name)
        self.end_line(here)
        if len(self.open) > MAX_DEPTH:
            raise UnusablePageError(f"more than {MAX_DEPTH:,} elements in each other")
        row, cell, group = here.row, here.cell, here.group
        if name == "tr":
            self.rows += 1
            row = self.rows
        elif name == "td" or name == "th":
            self.cells += 1
            cell = self.cells
        elif name in GROUPS:
            group = len(self.containers)
        self.open.append(
            _Element(
                name, here.hints | hints, here.own | hints, hints, len(self.containers), row, cell, group,
                here.in_link, here.preformatted or preformatted,
            )
        )  # fmt: skip
        self.containers.append(Container(here.container, len(self.blocks)))

    def close(self) -> None:
        """Close the innermost element."""
        closed = self.open.pop()
        if self.opened.pop() not in INLINE:
            self.end_line(self.open[-1])
            self.containers[closed.container].end = len(self.blocks)
            self.shallowest = min(self.shallowest, len(self.open))

    def recover(self, name: str) -> bool:
        """Close what was left open inside `name`, as happens where a stray quotation mark hid a tag; say whether
        `name` is open at all."""
        if name not in self.opened:
            return False
        while self.opened[-1] != name:
            self.close()
        return len(self.opened) > 1

    def end_line(self, outside: _Element) -> None:
        """A block-level tag; `outside` is the element around it."""
        if self.parts or self.pictures:
            if not outside.preformatted:
                self.flush()
            elif self.parts and not self.parts[-1].endswith("\n"):
                self.parts.append("\n")

    def add(self, text: str) -> None:
        here = self.open[-1]
        if not self.parts:
            self.at = here
        self.parts.append(text)
        if here.in_link:
            self.links += len(text.strip())
        self.tex = ""

    def void(self, name: str, attributes: str) -> None:
        if name == "img":
            self.picture(attributes)
        elif name == "hr":
            self.flush()
        elif name == "br" and self.open[-1].preformatted:
            self.add("\n")
        elif name == "br" and self.parts:
            if BREAK in self.parts[-2:] and (self.parts[-1] == BREAK or self.parts[-1].isspace()):
                self.flush()  # an empty line
            else:
                self.parts.append(BREAK)

    def picture(self, attributes: str) -> None:
        if tex := drawn_formula(attributes):
            self.add_tex(tex)
        elif alt := ALT.search(attributes):
            text = " ".join(unescape(alt[1]).split())
            if not any(letter.isalnum() for letter in text):
                if len(text) < 8 and self.parts:
                    self.parts.append(text)  # a smiley
            elif text not in self.pictures:
                self.pictures.append(text)
                if not self.parts:
                    self.at = self.open[-1]
                    self.flush()

    def formula(self, start: int, end: int) -> None:
        """What is left out from tag `start` to tag `end`: a formula, or nothing."""
        if self.names[start] in FORMULAS:
            end = max(end, start + 1)
            self.add_tex(formula(self.names[start:end], self.attributes[start:end], self.texts[start + 1 : end + 1]))

    def add_tex(self, tex: str) -> None:
        """Put a formula down, unless the same was said another way just before."""
        said = essence(tex)
        if said and said != self.tex:
            self.add(tex)
            self.tex = said

    def end_of(self, position: int) -> int:
        """Where the element that opens at `position` closes."""
        names = self.names
        name = names[position]
        depth, seen = 1, position + 1
        while True:
            try:
                end = names.index("/" + name, seen)
            except ValueError:
                return len(names) - 1
            depth += names[seen:end].count(name) - 1
            if depth == 0:
                return end
            seen = end + 1

    def flush(self) -> None:
        """The block in the making is whole."""
        depth, at = len(self.open), self.at
        if self.parts:
            text = "".join(self.parts)
            if at.preformatted:
                text = unescape(text).replace(BREAK, "\n").strip("\n").rstrip()
            else:
                text = unescape(collapse(text))
            if text and not text.isspace():
                self.put(text, at.tag, self.links, depth)
            self.parts, self.links, self.tex = [], 0, ""
        for text in self.pictures:
            self.put(text, "img", 0, depth)
        self.pictures = []

    def put(self, text: str, tag: str, links: int, depth: int) -> None:
        at, shallowest = self.at, min(self.shallowest, depth)
        preformatted = at.preformatted and tag != "img"
        hints, near = (bits.to_bytes(self.markup.width, "little") for bits in (at.hints, at.near))
        self.blocks.append(
            Block(
                text, tag, hints, near, links, depth, shallowest, at.container, at.row, at.cell, at.group,
                preformatted,
            )
        )  # fmt: skip
        self.shallowest = depth


def collapse(text: str) -> str:
    """With single blanks, and lines where the page breaks them."""
    if BREAK not in text:
        return " ".join(text.split())
    return "\n".join(" ".join(line.split()) for line in text.split(BREAK)).strip("\n")
