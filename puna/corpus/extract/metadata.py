"""What a page says about itself: title, description, kind, date, language, address."""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from puna.corpus.extract.entities import unescape
from puna.corpus.extract.markup import names

META = re.compile(r"<meta ([^>]*)>")
ATTRIBUTE = re.compile(r'([a-z:-]+)="([^"]*)"')
CANONICAL = re.compile(r'<link (?=[^>]*rel="canonical")[^>]*href="([^"]+)"')
LANGUAGE = re.compile(r'<html[^>]*?\s(?:xml:)?lang="([A-Za-z]{2,3})\b')
PUBLISHED = re.compile(r'"datePublished"\s*:\s*"([^"]{8,40})"')
TIME = re.compile(r'<time [^>]*datetime="([^"]{8,40})"')
DAY = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
DATES = names(
    "article:published_time datepublished date dc.date dc.date.issued dcterms.created dcterms.date sailthru.date"
    " parsely-pub-date publishdate pubdate publication_date citation_publication_date og:published_time"
    " article:modified_time og:updated_time"
)
TITLES = ("og:title", "twitter:title", "dc.title", "title")
DESCRIPTIONS = ("og:description", "description")
OPEN_GRAPH_KINDS = ("article", "product", "website")
TYPE = re.compile(r'"@type"\s*:\s*"(\w+)"')
QUESTIONS = ("DiscussionForumPosting", "QAPage", "Question")


class Claims(NamedTuple):
    """What a page says about its content."""

    title: str
    descriptions: list[str]
    kinds: tuple[bool, ...]
    """Whether Open Graph calls it one of OPEN_GRAPH_KINDS; whether there are an article, a product, a forum or
    questions in its JSON-LD (schema.org)."""


def metas(html: str) -> dict[str, str]:
    """The first content of each meta tag, by its name, property or itemprop in lower case."""
    found: dict[str, str] = {}
    for tag in META.findall(html):
        values = dict(ATTRIBUTE.findall(tag))
        name = values.get("property") or values.get("name") or values.get("itemprop")
        if name and values.get("content"):
            found.setdefault(name.lower(), unescape(values["content"]).strip())
    return found


def find_title(element: str, values: dict[str, str]) -> str:
    """The title element, else what the page tells others to show."""
    title = element.strip() or next((values[name] for name in TITLES if values.get(name)), "")
    return " ".join(title.split())


def find_claims(html: str, title: str, values: dict[str, str]) -> Claims:
    """What the whole page claims; `values` are those of its meta tags."""
    kind = values.get("og:type", "").lower().removeprefix("og:")
    types = set(linked_types(html))
    kinds = [kind.startswith(name) for name in OPEN_GRAPH_KINDS]
    kinds.append(any(name.endswith("Article") or name == "BlogPosting" for name in types))
    kinds += ["Product" in types, not types.isdisjoint(QUESTIONS)]
    return Claims(title, [" ".join(values.get(name, "").split()) for name in DESCRIPTIONS], tuple(kinds))


def linked_types(html: str) -> Iterator[str]:
    """The types in all JSON-LD scripts."""
    end = 0
    while (start := html.find("application/ld+json", end)) >= 0:
        end = html.find("</script>", start)
        end = len(html) if end < 0 else end
        yield from TYPE.findall(html, start, end)


def find_date(html: str, values: dict[str, str]) -> str | None:
    """The day it was published, or else changed, ISO 8601."""
    for value in dates(html, values):
        if found := DAY.match(value):
            try:
                return datetime(int(found[1]), int(found[2]), int(found[3])).date().isoformat()
            except ValueError:
                continue
    return None


def dates(html: str, values: dict[str, str]) -> Iterator[str]:
    """What may be the date, the best first: the whole page is searched only where its head does not say."""
    first, *others = (values.get(name, "") for name in DATES)
    yield first
    yield from first_after('"datePublished"', PUBLISHED, html)
    yield from others
    yield from first_after("<time ", TIME, html)


def first_after(start: str, pattern: re.Pattern[str], html: str) -> Iterator[str]:
    place = html.find(start)
    if place >= 0 and (found := pattern.search(html, place)):
        yield found[1]


def find_language(html: str, values: dict[str, str]) -> str | None:
    """The language that the page claims, ISO 639, in lower case."""
    if found := LANGUAGE.search(html[:5000]):
        return found[1].lower()
    said = values.get("content-language") or values.get("og:locale") or ""
    found = re.match(r"[A-Za-z]{2,3}\b", said.replace("_", "-"))
    return found[0].lower() if found else None


def find_address(html: str, values: dict[str, str], url: str | None) -> str | None:
    """The canonical address, made absolute by `url`; else `url` itself."""
    found = CANONICAL.search(html)
    said = unescape(found[1]).strip() if found else values.get("og:url", "")
    try:
        address = urljoin(url or "", said)
        if said and urlsplit(address).scheme in ("http", "https") and urlsplit(address).netloc:
            return address
    except ValueError:
        pass
    return url
