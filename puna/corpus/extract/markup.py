"""What tags and attributes tell: which elements break the line, which are left out, which words describe them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

TAG = re.compile(r'<(/?[a-z][^\s/>]*+)([^>"]*+(?:"[^"]*+"[^>"]*+)*+)>')
ATTRIBUTE = re.compile(r' ([^ ="]+)(?:="([^"]*)")?')
DROPPED = re.compile(r'<(!--|script|style)(?=[ >]|(?<=-))(?! type="math/)')
DROPPED_END = {"!--": "-->", "script": "</script>", "style": "</style>"}
DESCRIBING = ("class", "id", "role", "itemprop")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
HIDDEN = re.compile(r"display:\s*none|visibility:\s*hidden")
PREFORMATTED = re.compile(r"white-space:\s*(?:pre|break-spaces)\s*(?:;|$)")


def names(text: str) -> dict[str, None]:
    """A set of names that keeps their order."""
    return dict.fromkeys(text.split())


INLINE = names(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q ruby rb rt rtc s samp"
    " small span strike strong sub sup time tt u var picture mjx-container mjx-assistive-mml"
)
VOID = names("area base basefont bgsound br col embed frame hr img input keygen link meta param source track wbr")
SKIPPED = names(
    "math script style template svg iframe object applet audio video canvas map select datalist textarea noembed"
    " noframes dialog head title rp mjx-math"
)
"""Left out with all inside."""
FORMULAS = names("math script")
"""Of these, what is put down as TeX: some scripts."""
GROUPS = names("table dl figure")
SKIPPED_CLASSES = names(
    "headerlink hash-link anchorjs-link copybtn linenos linenodiv lineno line-numbers-rows gutter mw-editsection"
    " katex-html MathJax_Preview visually-hidden sr-only screen-reader-text screen-reader-only"
)
"""Marks beside headings and code, spoken twins of what stands there already, markup that only draws a formula."""
MATHJAX_CLASSES = names("MathJax MathJax_Display MathJax_SVG MathJax_SVG_Display MathJax_CHTML mjx-chtml")
"""The same, where the page keeps the TeX in scripts."""
PREFORMATTED_CLASSES = names("blob-code-inner blob-code code-line")
FORMATTING = names("b big code em font i s small strike strong tt u")
FORMATTING_TAG = re.compile(f"<(?:({'|'.join(FORMATTING)})[ >]|/({'|'.join(FORMATTING)})>)", re.IGNORECASE | re.ASCII)


class Traits(NamedTuple):
    """Of an element, by its tag or by an attribute."""

    hints: int
    """Bit set over the vocabulary."""
    skipped: int
    """ALWAYS, BESIDE_TEX or 0."""
    preformatted: bool
    """Blanks and lines count."""


ALWAYS, BESIDE_TEX = 2, 1
REMEMBERED = 50_000
"""Tags and values: real sites share the class names of their frameworks."""


class Markup:
    """Traits by the text of a tag. `vocabulary` says which bit of the hints stands for a tag ("<nav") or a word of a
    class, id, role or itemprop ("comment"); others are not noted."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocabulary = vocabulary
        self.bits = {word: 1 << bit for word, bit in vocabulary.items()}
        self.width = (len(self.bits) + 7) // 8  # bytes of a bit set
        self.hidden = self.bits.get("hidden", 0)
        self.tags: dict[str, Traits] = {}
        self.values: dict[str, Traits] = {}

    def forget(self) -> None:
        """Keep the memory bounded; to be called between pages."""
        for memory in (self.tags, self.values):
            if len(memory) > REMEMBERED:
                memory.clear()

    def traits(self, name: str, attributes: str) -> Traits:
        """Of a tag; `attributes` as the parser writes them."""
        hints, skipped, preformatted = self.bits.get("<" + name, 0), ALWAYS * (name in SKIPPED), name == "pre"
        if attributes and not skipped:
            for attribute, value in ATTRIBUTE.findall(attributes):
                if attribute == "style":
                    preformatted = preformatted or bool(PREFORMATTED.search(value))
                    hints |= self.hidden if HIDDEN.search(value) else 0
                elif attribute == "hidden" or attribute == "aria-hidden":
                    hints |= self.hidden if value != "false" else 0
                elif attribute in DESCRIBING:
                    told = self.values.get(value) or self.told(value)
                    hints |= told.hints
                    skipped = max(skipped, told.skipped)
                    preformatted = preformatted or told.preformatted
        self.tags[name + attributes] = found = Traits(hints, skipped, preformatted)
        return found

    def told(self, value: str) -> Traits:
        """By the words of a class, id, role or itemprop."""
        hints = 0
        for word in WORD.findall(value):
            hints |= self.bits.get(word.lower(), 0)
        classes = value.split()
        skipped = 0
        if not SKIPPED_CLASSES.keys().isdisjoint(classes):
            skipped = ALWAYS
        elif not MATHJAX_CLASSES.keys().isdisjoint(classes):
            skipped = BESIDE_TEX
        preformatted = not PREFORMATTED_CLASSES.keys().isdisjoint(classes)
        self.values[value] = found = Traits(hints, skipped, preformatted)
        return found


def head_and_body(html: str) -> tuple[str, str]:
    """Of a page as the parser writes it, without scripts except TeX, without styles and comments."""
    pieces, position = [], 0
    for found in DROPPED.finditer(html):
        if found.start() >= position:
            end = html.find(DROPPED_END[found[1]], found.end())
            pieces.append(html[position : found.start()])
            position = html.find(">", end) + 1 if end >= 0 else len(html)
    head, opened, body = "".join([*pieces, html[position:]]).partition("<body")
    return head, opened + body


def unclosed(html: str, least: int) -> list[int]:
    """Of each element of FORMATTING, how many tags in a page as it came open it, less those that close it; nothing for
    a page of no more than `least` tags."""
    if html.count("<") <= least:
        return []
    count = dict.fromkeys(FORMATTING, 0)
    for opened, closed in FORMATTING_TAG.findall(html):
        count[(opened or closed).lower()] += 1 if opened else -1
    return list(count.values())
