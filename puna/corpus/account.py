"""A page to look at what became of pages: for each reason some that were dropped for it, and some that were kept.

account.html shows a page as it was fetched beside the text that was made of it. It holds all it shows and runs no
script: the originals are drawn in sandboxed frames that may load nothing. Which pages are shown is drawn by the hash
of their address, so it is the same in every run.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import xxhash

from puna.corpus.extract import decode
from puna.corpus.read import read_original
from puna.corpus.source import File
from puna.errors import PunaError
from puna.recipe import Corpus

SAMPLES = 5
"""Pages shown for each reason, and of each part."""
ORIGINAL = 60_000
"""Characters of an original that are shown."""
TEXT = 20_000
"""Characters of a text that are shown."""
NOT_SHOWN = re.compile(
    r"<!--.*?-->|<(script|noscript|template|object|embed|iframe)\b.*?</\1\s*>|<(?:link|base|meta|script|iframe)\b[^>]*>",
    re.IGNORECASE | re.DOTALL,
)
EMBEDDED = re.compile(r"\bdata:[^\s\"'()<>]{2000,}")
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)


@dataclass
class Samples:
    """Some rows of each reason and part, those whose ids hash lowest."""

    chosen: defaultdict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, table: pa.Table) -> None:
        """Rows of DOCUMENTS."""
        draws = [xxhash.xxh3_64_intdigest(f"{name} {doc}".encode()) for name, doc in zip(*_columns(table, "id", "doc"))]
        for place, (draw, step, reason, part) in enumerate(zip(draws, *_columns(table, "step", "reason", "part"))):
            kind = (step, reason) if reason else ("", part)
            rows = self.chosen[kind]
            if len(rows) < SAMPLES or draw < rows[-1][0]:
                rows.append((draw, table.slice(place, 1).to_pylist()[0]))
                rows.sort(key=lambda row: row[0])
                del rows[SAMPLES:]

    def of(self, step: str, reason: str) -> list[dict[str, Any]]:
        return [row for _, row in self.chosen[step, reason]]


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def write_account(path: Path, samples: Samples, funnel: dict[str, Any], files: Sequence[File], knobs: Corpus) -> None:
    """Write the page; the originals are read from the source again."""
    known = {(file.source, file.name): file for file in files}

    def show(step: str, reason: str) -> list[dict[str, Any]]:
        return [
            row | {"text": row["text"][:TEXT], "original": original(row, known, path.parent, knobs)}
            for row in samples.of(step, reason)
        ]

    steps = []
    for step in funnel["steps"]:
        reasons = sorted(step["dropped"].items(), key=lambda item: (-item[1], item[0]))
        steps.append(step | {"reasons": [(name, count, show(step["step"], name)) for name, count in reasons]})
    kept = [(part, counts, show("", part)) for part, counts in funnel["parts"].items()]
    folder = Path(__file__).parent
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True)
    page = environment.get_template("account.html.jinja").render(steps=steps, kept=kept, policy=POLICY)
    path.write_text(page, encoding="utf-8", errors="replace")


def original(row: dict[str, Any], known: dict[tuple[str, str], File], scratch: Path, knobs: Corpus) -> str:
    """The page as it was fetched, fit to be shown; empty where there is none to show. Tables of rows are not searched
    for theirs, which would mean to read them again from the start."""
    file = known.get((row["source"], row["origin"]))
    if file is None or file.kind not in ("warc", "html") or row["step"] == "read":
        return ""
    try:
        page = read_original(file, row["place"], scratch, knobs)
    except (OSError, PunaError, StopIteration):
        return ""
    if page is None or isinstance(page.html, str):
        return ""
    return presentable(decode(page.html, page.charset))


def presentable(html: str) -> str:
    """Without what would not be shown in a frame that may load nothing."""
    return EMBEDDED.sub("data:,", NOT_SHOWN.sub("", html))[:ORIGINAL]
