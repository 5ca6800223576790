"""From the bytes of a page to its text: the main content, as plain text without markdown marks (section 3.1.1).

Code keeps its lines and its indentation. Mathematics is kept as TeX wherever the page has it: in scripts, in the
annotations of MathML, and as the alternative text of formulas that are images.
"""

import re
from dataclasses import dataclass
from typing import Any

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
XML_ENCODING = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""")
XML_EMPTY = re.compile(r"<(script|style|title|textarea|iframe|a|div|span)\b([^<>]*)/>", re.IGNORECASE)
SHALLOW_LISTS = "body > ul, body > * > ul, body > * > * > ul"
TEXT_PER_LINK = 40
"""A list with fewer characters for each of its links is a menu."""
MAX_DEPTH = 2000
"""Browsers stop at 512 open elements; the extractor takes the square of the depth of these two in time."""
NESTING = re.compile(r"<(/?)(?:div|article)\b", re.IGNORECASE)

# Navigation that the extractor's own rules miss: marks beside headings, the bars of Sphinx, DocBook and Texinfo.
BOILERPLATE = [
    ".headerlink",
    ".sphinxsidebar",
    ".navheader",
    ".navfooter",
    ".nav-panel",
    "[role=navigation]",
    "[role=search]",
    # images, except formulas
    'img:not([class*="math"]):not([class*="tex"]):not([alt*="\\\\"]):not([alt*="$"])',
]


class UnusablePageError(ValueError):
    """A page with a reason not to read it."""


@dataclass(frozen=True)
class Page:
    text: str
    title: str


def decode(html: bytes, charset: str | None = None) -> str:
    """The characters of a page, its encoding found as browsers do: byte order mark, HTTP header, meta tag, guess."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    declared = XML_ENCODING.match(html)
    name = charset or (declared[1].decode("ascii") if declared else None)
    encoding = map_encoding_to_html5(name, fallback_utf8=False) if name else None
    if encoding is None and b"charset" not in html[:1024].lower():
        try:
            return html.decode("utf-8")  # what is UTF-8 by chance is rare: better than to guess
        except UnicodeDecodeError:
            pass
    return bytes_to_str(html, encoding or detect_encoding(html, from_html_meta=True) or "utf-8")


def extract(html: str) -> Page:
    """Title and main text. Raises UnusablePageError for a page of endless depth."""
    if _depth(html) > MAX_DEPTH:
        raise UnusablePageError(f"more than {MAX_DEPTH:,} elements in each other")
    if html.lstrip()[:5] == "<?xml":
        html = XML_EMPTY.sub(r"<\1\2></\1>", html)  # to HTML, <script/> is open
    tree = HTMLTree.parse(html)
    _keep_math(tree)
    _keep_lists(tree)
    text = extract_plain_text(tree, main_content=True, alt_texts=True, list_bullets=False, skip_elements=BOILERPLATE)
    return Page(tidy(text), " ".join((tree.title or "").split()))


def tidy(text: str) -> str:
    """Without control characters, trailing blanks, and more than one empty line at a time."""
    text = text.replace("\r\n", "\n").replace("\xa0", " ")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\xad\u200b\u2028\u2029\ufeff\ufffe\uffff]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _keep_math(tree: HTMLTree) -> None:
    """Put TeX where the extractor would lose a formula or say it twice."""
    for script in _all(tree, 'script[type^="math/tex"]'):
        mark = "$$" if "display" in script.getattr("type") else "$"
        _replace(script, tree.create_text_node(f"{mark}{script.text}{mark}"))
    for math in _all(tree, "math"):
        if tex := math.query_selector('annotation[encoding="application/x-tex"]'):
            _replace(math, tree.create_text_node(f"${tex.text.strip()}$"))


def _keep_lists(tree: HTMLTree) -> None:
    """Save lists of text near the top of a page: the extractor takes every `ul` there for a menu, but no `ol`."""
    for ul in _all(tree, SHALLOW_LISTS):
        if len(ul.text) >= TEXT_PER_LINK * ul.inner_html.count("<a "):
            ol: Any = tree.create_element("ol")
            for child in list(ul.child_nodes):
                ol.append_child(child)
            _replace(ul, ol)


def _all(tree: HTMLTree, selector: str) -> list[Any]:
    return list(tree.document.query_selector_all(selector)) if tree.document else []


def _replace(node: Any, new: Any) -> None:
    node.parent.replace_child(new, node)


def _depth(html: str) -> int:
    """How many div and article elements are open at once, at most."""
    if html.count("<") < 2 * MAX_DEPTH:
        return 0
    depth = deepest = 0
    for tag in NESTING.finditer(html):
        depth += -1 if tag[1] else 1
        deepest = max(deepest, depth)
    return deepest
