"""A page as a list of blocks: runs of text between block-level tags, with what the page says about where they stand.

The parser of resiliparse (lexbor) builds the tree that a browser would build; written out again, every tag is closed,
lower case and quoted, so that one pass over its tags with a stack of open elements suffices: linear time, at any depth.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from puna.corpus.extract.entities import unescape
from puna.corpus.extract.formulas import drawn_formula, mathml_to_tex

MAX_DEPTH = 2000
"""Browsers stop at 512 open elements."""


class UnusablePageError(ValueError):
    """A page with a reason not to read it."""


TAG = re.compile(r'<(/?[a-z][^\s/>]*+)((?:[^>"]++|"[^"]*+")*+)>')
HINTS = re.compile(r' (?:class|id|role|itemprop)="([^"]+)"')
CLASSES = re.compile(r' class="([^"]+)"')
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
ALT = re.compile(r' alt="([^"]*)"')
BREAK = "\x1f"  # <br> within a block

INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q ruby rb rt rtc s samp small"
    " span strike strong sub sup time tt u var picture mjx-container mjx-assistive-mml".split()
)
GROUPS = frozenset(("table", "dl", "figure"))
VOID = frozenset(
    "area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr".split()
)
SKIPPED = frozenset(
    "style template svg iframe object applet audio video canvas map select datalist textarea"
    " noembed noframes dialog head title rp mjx-math".split()
)
# Marks beside headings and code, spoken twins of what stands there already, markup that only draws a formula.
SKIPPED_CLASSES = frozenset(
    "headerlink hash-link anchorjs-link copybtn linenos linenodiv lineno line-numbers-rows gutter mw-editsection"
    " katex-html MathJax_Preview visually-hidden sr-only screen-reader-text screen-reader-only".split()
)
MATHJAX_CLASSES = frozenset("MathJax MathJax_Display MathJax_SVG MathJax_SVG_Display MathJax_CHTML mjx-chtml".split())
PREFORMATTED_CLASSES = frozenset("blob-code-inner blob-code code-line".split())
PREFORMATTED = re.compile(r"white-space:\s*(?:pre|break-spaces)\s*(?:;|\")")
HIDDEN = re.compile(r'\shidden(?:[\s=]|$)|display:\s*none|visibility:\s*hidden|\saria-hidden="true"')


@dataclass(slots=True)
class Block:
    text: str
    tag: str
    """The innermost block-level element; "img" for the alternative text of an image."""
    hints: int
    """Bit set over the vocabulary: tags, class and id words of all open elements."""
    near: int
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


def read_blocks(html: str, vocabulary: Mapping[str, int]) -> tuple[list[Block], list[Container]]:
    """Blocks in the order of the page. `html` is the body as the parser writes it; `vocabulary` says which bit of the
    hints stands for a tag ("<nav") or a word of a class, id, role or itemprop ("comment"); others are not noted.
    Raises UnusablePageError for endless depth."""
    return _Reader(html, vocabulary).read()


class _Reader:
    def __init__(self, html: str, vocabulary: Mapping[str, int]) -> None:
        self.has_tex_scripts = 'type="math/tex' in html
        html = cut(html, "<script", "</script>", kept=' type="math/')
        pieces = TAG.split(cut(cut(html, "<style", "</style>"), "<!--", "-->"))
        self.texts, self.names, self.attributes = pieces[0::3], pieces[1::3], pieces[2::3]
        self.vocabulary = vocabulary
        self.traits: dict[str, tuple[int, bool, bool]] = {}
        self.blocks: list[Block] = []
        self.containers = [Container(-1, 0)]
        self.open = [_Element()]
        self.rows = self.cells = 0
        # The block in the making.
        self.parts: list[str] = []
        self.at = self.open[0]  # where its text began
        self.links = 0
        self.shallowest = 0
        self.pictures: list[str] = []
        self.tex = ""  # the last formula, while nothing follows it

    def read(self) -> tuple[list[Block], list[Container]]:
        names, attributes, texts, stack = self.names, self.attributes, self.texts, self.open
        self.add(texts[0])
        position, count = 0, len(names)
        while position < count:
            name = names[position]
            if name[0] == "/":
                if name[1:] in INLINE:
                    stack.pop()
                else:
                    self.close()
            elif name in VOID:
                self.void(name, attributes[position])
            else:
                bits, skipped, preformatted = self.look(name, attributes[position])
                if skipped:
                    end = self.end_of(position)
                    if name in ("math", "script") or skipped:
                        self.formula(position, end)
                    position = end
                elif name in INLINE:
                    here = stack[-1]
                    if bits or preformatted or name == "a":
                        here = replace_inline(here, bits, preformatted, name == "a")
                    stack.append(here)
                else:
                    self.enter(name, bits, preformatted)
            position += 1
            text = texts[position]
            if text and (self.parts or not text.isspace()):
                self.add(text)
        while len(stack) > 1:
            self.close()
        self.flush()
        self.containers[0].end = len(self.blocks)
        return self.blocks, self.containers

    def look(self, name: str, attributes: str) -> tuple[int, bool, bool]:
        """Bits of the hints, whether to skip it with all inside, whether blanks count."""
        key = name if not attributes else name + attributes
        if known := self.traits.get(key):
            return known
        vocabulary = self.vocabulary
        bits = 0
        skipped = name in SKIPPED or name == "math" or name == "script"
        preformatted = name == "pre"
        bit = vocabulary.get("<" + name)
        if bit is not None:
            bits = 1 << bit
        if attributes and not skipped:
            for value in HINTS.findall(attributes):
                for word in WORD.findall(value):
                    bit = vocabulary.get(word.lower())
                    if bit is not None:
                        bits |= 1 << bit
            if found := CLASSES.search(attributes):
                classes = set(found[1].split())
                skipped = not classes.isdisjoint(SKIPPED_CLASSES) or not (
                    classes.isdisjoint(MATHJAX_CLASSES) or not self.has_tex_scripts
                )
                preformatted = preformatted or not classes.isdisjoint(PREFORMATTED_CLASSES)
            if " style=" in attributes and PREFORMATTED.search(attributes):
                preformatted = True
            bit = vocabulary.get("hidden")
            if bit is not None and HIDDEN.search(attributes):
                bits |= 1 << bit
        self.traits[key] = traits = (bits, skipped, preformatted)
        return traits

    def enter(self, name: str, bits: int, preformatted: bool) -> None:
        """Open a block-level element."""
        here = self.open[-1]
        if here.preformatted:
            self.new_line()
        else:
            self.flush()
        if len(self.open) > MAX_DEPTH:
            raise UnusablePageError(f"more than {MAX_DEPTH:,} elements in each other")
        row, cell = here.row, here.cell
        if name == "tr":
            self.rows += 1
            row, cell = self.rows, 0
        elif name == "td" or name == "th":
            self.cells += 1
            cell = self.cells
        self.containers.append(Container(here.container, len(self.blocks)))
        self.open.append(
            _Element(
                name,
                here.hints | bits,
                here.own | bits,
                bits,
                len(self.containers) - 1,
                row,
                cell,
                len(self.containers) if name in GROUPS else here.group,
                here.in_link,
                here.preformatted or preformatted,
            )
        )

    def close(self) -> None:
        """Close a block-level element."""
        stack = self.open
        if len(stack) == 1:
            return
        closed = stack.pop()
        here = stack[-1]
        if here.preformatted:
            self.new_line()
        else:
            self.flush()
        self.containers[closed.container].end = len(self.blocks)
        if len(stack) < self.shallowest:
            self.shallowest = len(stack)

    def add(self, text: str) -> None:
        if not self.parts:
            self.at = self.open[-1]
        self.parts.append(text)
        if self.open[-1].in_link:
            self.links += len(text.strip())
        self.tex = ""

    def new_line(self) -> None:
        if self.parts and not self.parts[-1].endswith("\n"):
            self.parts.append("\n")

    def void(self, name: str, attributes: str) -> None:
        if name == "br":
            if self.open[-1].preformatted:
                self.parts.append("\n")
            elif self.parts:
                if self.parts[-1] == BREAK or (
                    len(self.parts) > 1 and self.parts[-2] == BREAK and self.parts[-1].isspace()
                ):
                    self.flush()
                else:
                    self.parts.append(BREAK)
        elif name == "img":
            self.picture(attributes)
        elif name == "hr":
            self.flush()

    def picture(self, attributes: str) -> None:
        tex = drawn_formula(attributes)
        if tex:
            self.add_tex(tex)
            return
        alt = ALT.search(attributes)
        if not alt:
            return
        text = " ".join(unescape(alt[1]).split())
        if not any(letter.isalnum() for letter in text):
            if text and len(text) < 8 and self.parts:
                self.parts.append(text)  # a smiley
        else:
            if text not in self.pictures:
                self.pictures.append(text)
            if not self.parts:
                self.at = self.open[-1]
                self.flush()

    def add_tex(self, tex: str) -> None:
        """Put a formula down, unless the same was said another way just before."""
        essence = re.sub(r"\s|\\(?:displaystyle|textstyle)|[${}]", "", tex)
        if essence and essence != self.tex:
            self.add(tex)
            self.tex = essence

    def formula(self, start: int, end: int) -> None:
        name = self.names[start]
        if name == "script":
            mark = "$$" if "display" in self.attributes[start] else "$"
            tex = self.texts[start + 1].strip()
            if tex:
                self.add_tex(f"{mark}{tex}{mark}")
        elif name == "math":
            tex = mathml_to_tex(self.names[start:end], self.attributes[start:end], self.texts[start + 1 : end + 1])
            if tex:
                self.add_tex(tex)

    def end_of(self, position: int) -> int:
        """Where the element that opens at `position` closes."""
        names = self.names
        name = names[position]
        closing = "/" + name
        depth, seen = 1, position + 1
        while True:
            try:
                end = names.index(closing, seen)
            except ValueError:
                return len(names) - 1
            depth += names[seen:end].count(name) - 1
            if depth == 0:
                return end
            seen = end + 1

    def flush(self) -> None:
        """The block in the making is whole."""
        depth = len(self.open)
        if self.parts:
            at = self.at
            text = "".join(self.parts)
            self.parts = []
            if at.preformatted:
                text = unescape(text).replace(BREAK, "\n").strip("\n").rstrip()
            else:
                text = unescape(collapse(text))
            if text and not text.isspace():
                self.blocks.append(
                    Block(
                        text,
                        at.tag,
                        at.hints,
                        at.near,
                        self.links,
                        depth,
                        min(self.shallowest, depth),
                        at.container,
                        at.row,
                        at.cell,
                        at.group,
                        at.preformatted,
                    )
                )
                self.shallowest = depth
            self.links = 0
            self.tex = ""
        if self.pictures:
            at = self.at if self.blocks else self.open[-1]
            for text in self.pictures:
                self.blocks.append(
                    Block(
                        text, "img", at.hints, at.near, 0, depth, depth, at.container, at.row, at.cell, at.group, False
                    )
                )
            self.pictures = []


def replace_inline(here: _Element, bits: int, preformatted: bool, link: bool) -> _Element:
    return _Element(
        here.tag,
        here.hints | bits,
        here.near | bits,
        here.own,
        here.container,
        here.row,
        here.cell,
        here.group,
        here.in_link or link,
        here.preformatted or preformatted,
    )


def cut(html: str, start: str, end: str, kept: str | None = None) -> str:
    """Without what stands from `start` to `end`, except where `kept` follows `start`."""
    first, *rest = html.split(start)
    if not rest:
        return html
    pieces = [first]
    for piece in rest:
        if kept and piece.startswith(kept):
            pieces += (start, piece)
        else:
            _, found, tail = piece.partition(end)
            pieces.append(tail if found else "")
    return "".join(pieces)


def collapse(text: str) -> str:
    if BREAK not in text:
        return " ".join(text.split())
    lines = (" ".join(line.split()) for line in text.split(BREAK))
    return "\n".join(lines).strip("\n")
