"""The whole way from HTML to a page's text."""

import re
from dataclasses import dataclass

from resiliparse.parse.html import HTMLTree

from puna.corpus.extract import metadata
from puna.corpus.extract.blocks import UnusablePageError
from puna.corpus.extract.choice import choose
from puna.corpus.extract.decode import decode
from puna.corpus.extract.markup import FORMATTING
from puna.corpus.extract.network import load_network
from puna.corpus.extract.render import render

XML_EMPTY = re.compile(r"<(script|style|title|textarea|iframe|a|div|span)\b([^<>]*)/>", re.IGNORECASE)
MAX_UNCLOSED = 1000
"""By the rules of HTML each of these that is not closed is opened again in every later paragraph: a square in time."""


@dataclass(frozen=True)
class Page:
    text: str
    """The main content."""
    title: str
    date: str | None
    """The day of publication that the page states, ISO 8601."""
    language: str | None
    """The language that the page claims, ISO 639."""
    url: str | None
    """The canonical address that the page states, else the one given."""


def extract(html: bytes | str, url: str | None = None, charset: str | None = None) -> Page:
    """Main text and what the head says. `charset` is the HTTP header's, for bytes. Raises UnusablePageError for a page
    of endless depth or with endless markup, and nothing else."""
    if isinstance(html, bytes):
        html = decode(html, charset)
    if html[:100].lstrip("\ufeff \t\r\n").startswith("<?xml"):
        html = XML_EMPTY.sub(r"<\1\2></\1>", html)  # to HTML, <script/> is open
    network = load_network()
    refuse_unclosed(network.passes.unclosed(html, 4 * MAX_UNCLOSED))
    try:
        tree = HTMLTree.parse(html)
    except UnicodeEncodeError:
        tree = HTMLTree.parse(html.encode("utf-8", "replace").decode())  # half a character, as JSON may hold: "?"
    clean = str(tree)
    head, body = network.passes.head_and_body(clean)
    values = metadata.metas(head)
    title = metadata.find_title(tree.title or "", values)
    blocks, containers = network.passes.read_blocks(body)
    text = ""
    if blocks:
        claims = metadata.find_claims(clean, title, values)
        text = render(choose(blocks, network.probabilities(blocks, containers, claims)))
    return Page(
        text,
        title,
        metadata.find_date(clean, values),
        metadata.find_language(clean, values),
        metadata.find_address(head, values, url),
    )


def refuse_unclosed(counts: list[int]) -> None:
    """Raise UnusablePageError where the parser would write a page many times as long."""
    for name, count in zip(FORMATTING, counts):
        if count > MAX_UNCLOSED:
            raise UnusablePageError(f"{count:,} <{name}> are never closed")
