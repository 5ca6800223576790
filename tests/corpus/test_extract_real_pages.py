"""Code, formulas, rows of tables and pictures' texts of real pages are kept, once each.

Manuals: the development data's Python and SymPy documentation, on which nothing was fitted; what stands in the element
of role "main" is content. Web pages: those of WCXB, on which the weights were fitted, that have such a thing within
their gold text. Of both, pages of up to MOST characters.
"""

import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from resiliparse.parse.html import ElementNode, HTMLTree, NodeType

from puna.corpus.extract import extract
from puna.corpus.extract.render import tidy

WORD = re.compile(r"\w+")
MOST = 200_000
"""Characters of a page; longer ones take minutes."""
LONG = 60
"""Characters; shorter pieces may well stand in the text around them too."""
SILENT = ("script", "style", "noscript", "template", "title")


def read(path: Path) -> Iterator[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def line(text: str | None) -> str:
    return " ".join((text or "").split())


def said(text: str) -> str:
    """Its words alone."""
    return f" {' '.join(WORD.findall(text.lower()))} "


def codes(main: ElementNode) -> list[str]:
    """Of four words or more; without those whose lines are elements, which the parser's text runs together."""
    found = [node for node in main.query_selector_all("pre") if not node.query_selector("br, div, p, table, li")]
    return [text for text in (tidy(node.text or "") for node in found) if len(WORD.findall(text)) >= 4]


def formulas(main: ElementNode) -> list[str]:
    return [line(node.getattr("alt")) for node in main.query_selector_all("img.math")]


def rows(main: ElementNode) -> list[str]:
    """Of two cells and four words or more, that are not links for the most part, in the innermost tables."""
    found = []
    for node in main.query_selector_all("tr"):
        cells = [text for text in (line(cell.text) for cell in node.query_selector_all("td, th")) if text]
        links = sum(len(line(link.text)) for link in node.query_selector_all("a"))
        if len(cells) < 2 or node.query_selector("table, pre, img") or 2 * links > sum(map(len, cells)):
            continue
        if len(WORD.findall(" ".join(cells))) >= 4:
            found.append(said(" ".join(cells)))
    return found


def pictures(body: ElementNode, gold: str) -> Iterator[str]:
    """Alternative texts of three words or more that the gold text does not say, of pictures between two passages of it,
    nothing else standing between."""
    items: list[tuple[bool, str]] = []
    for node in body:
        if isinstance(node, ElementNode):
            if node.tag == "img":
                items.append((True, line(node.getattr("alt"))))
        elif (
            node.type == NodeType.TEXT
            and node.parent
            and node.parent.tag not in SILENT
            and WORD.search(node.text or "")
        ):
            items.append((False, said(node.text or "")))
    for at, (is_picture, text) in enumerate(items):
        tells = is_picture and len(WORD.findall(text)) >= 3 and said(text) not in gold
        if tells and is_within(items[:at][::-1], gold) and is_within(items[at + 1 :], gold):
            yield text


def is_within(items: list[tuple[bool, str]], gold: str) -> bool:
    """Whether the texts, up to the first long one, are in the gold text."""
    for is_picture, text in items:
        if not is_picture and (text not in gold or len(text) > LONG):
            return text in gold
    return False


KINDS: dict[str, tuple[Callable[[ElementNode], list[str]], Callable[[str], str]]] = {
    "code": (codes, str),
    "formula": (formulas, line),
    "row": (rows, said),
}
"""What to look for, and how the text of the page is written to find it there."""


def failures(extracted: str, kind: str, main: ElementNode, gold: str | None = None) -> tuple[int, list[str]]:
    """How many there are in the content, and those that are not there or, being long, there too often."""
    find, form = KINDS[kind]
    everywhere = find(main)
    wanted = dict.fromkeys(text for text in everywhere if text and (gold is None or said(text) in gold))
    text = form(extracted)
    wrong = []
    for piece in wanted:
        if piece not in text:
            wrong.append(f"lost: {piece!r}")
        elif len(piece) > LONG and text.count(piece) > sum(other.count(piece) for other in everywhere):
            wrong.append(f"repeated: {piece!r}")
    return len(wanted), wrong


def test_manuals(shared_data: Callable[[str], Path]) -> None:
    pages, total, wrong = 0, dict.fromkeys(KINDS, 0), []
    for name in ("python_docs_html_en", "sympy_docs_html_en"):
        for page in read(shared_data(f"web_html/{name}.jsonl.xz")):
            if len(page["html"]) > MOST:
                continue
            document = HTMLTree.parse(page["html"]).document
            main = document and document.query_selector("[role=main]")
            assert main is not None
            text = extract(page["html"]).text
            counts = {kind: failures(text, kind, main) for kind in KINDS}
            pages += any(count for count, _ in counts.values())
            for kind, (count, lost) in counts.items():
                total[kind] += count
                wrong += [f"{page['id']}: {kind} {text}" for text in lost]
    assert pages >= 40, pages
    assert min(total.values()) >= 100, total
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("kind", "tag", "least"), [("code", "<pre", 0.99), ("row", "<tr", 0.95)])
def test_web_pages(kind: str, tag: str, least: float, shared_data: Callable[[str], Path]) -> None:
    total, wrong = 0, []
    for page in read(shared_data("web_html/wcxb_dev.jsonl.xz")):
        gold = page["ground_truth"]["ground_truth"].get("main_content") or ""
        body = HTMLTree.parse(page["html"]).body if tag in page["html"] and len(page["html"]) <= MOST else None
        if body is not None:
            count, lost = failures(extract(page["html"]).text, kind, body, said(gold))
            total += count
            wrong += [f"{page['ground_truth']['url']}: {text}" for text in lost]
    assert total >= 100
    assert len(wrong) <= (1 - least) * total, "\n".join(wrong)


def test_pictures_of_web_pages(shared_data: Callable[[str], Path]) -> None:
    """Most are kept; names, logos, what a heading says and pictures of what a link leads to are not."""
    total, wrong = 0, []
    for page in read(shared_data("web_html/wcxb_dev.jsonl.xz")):
        gold = said(page["ground_truth"]["ground_truth"].get("main_content") or "")
        body = HTMLTree.parse(page["html"]).body if "<img" in page["html"] and len(page["html"]) <= MOST else None
        if body is not None and (wanted := set(pictures(body, gold))):
            text = line(extract(page["html"]).text)
            total += len(wanted)
            wrong += [f"{page['ground_truth']['url']}: {alt!r}" for alt in wanted if text.count(alt) != 1]
    assert total >= 500
    assert len(wrong) <= 0.3 * total, f"{len(wrong)} of {total}:\n" + "\n".join(wrong)
