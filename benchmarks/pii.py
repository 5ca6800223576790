"""Personal data found by puna and by Presidio: precision and recall by kind, and speed, in turns within one process.

    python benchmarks/pii.py SPANS.jsonl.gz ... [--texts TEXTS.jsonl.gz ...] [--sample 300] [--rounds 3]

SPANS are files of presidio-research: `full_text` and `spans` with entity_type, start_position and end_position. TEXTS
are documents with a field `text`; speed is measured on them, and what both find there is counted. Presidio is optional
(pip install presidio-analyzer) and runs with its pattern recognizers for these kinds, on a blank spaCy pipeline.
"""

import argparse
import gzip
import json
import lzma
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from puna.corpus.pii import find_pii

KINDS = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IP_ADDRESS": "ip",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
    "US_SSN": "national-id",
}
Span = tuple[str, int, int]
Finder = Callable[[str], list[Span]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spans", nargs="+", type=Path)
    parser.add_argument("--texts", nargs="*", type=Path, default=[])
    parser.add_argument("--sample", type=int, default=300, help="texts of each file")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    finders: dict[str, Finder] = {"puna": lambda text: list(find_pii(text, "en"))}
    if presidio := load_presidio():
        finders["presidio"] = presidio
    rows = [row for path in args.spans for row in read(path)]
    print("| finder | kind | spans | recall | precision | exact boundaries |\n|---|---|---|---|---|---|")
    for name, find in finders.items():
        report_spans(name, find, rows)
    sets = {"spans": [row["full_text"] for row in rows][: 3 * args.sample]}
    for path in args.texts:
        texts = [text[:20_000] for row in read(path) if (text := row.get("text"))]
        sets[path.name.split(".")[0]] = random.Random(0).sample(texts, min(args.sample, len(texts)))
    print("\n| texts | characters | finder | documents/s/core | found |\n|---|---|---|---|---|")
    for name, texts in sets.items():
        report_speed(name, texts, finders, args.rounds)


def load_presidio() -> Finder | None:
    try:
        import spacy  # pyright: ignore[reportMissingImports]
        from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
        from presidio_analyzer.nlp_engine import SpacyNlpEngine  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("presidio-analyzer is not installed: puna alone\n")
        return None

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}

    analyzer = AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"])

    def find(text: str) -> list[Span]:
        found = analyzer.analyze(text, "en", entities=list(KINDS))
        return [(KINDS[item.entity_type], item.start, item.end) for item in found]

    return find


def read(path: Path) -> Iterator[dict[str, Any]]:
    open_text = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with open_text(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def report_spans(name: str, find: Finder, rows: list[dict[str, Any]]) -> None:
    """A span counts as found where one of its kind overlaps it, and a finding as right likewise."""
    total, hits, exact, found, right = (Counter[str]() for _ in range(5))
    for row in rows:
        marked = row["spans"]
        gold = [
            (KINDS[s["entity_type"]], s["start_position"], s["end_position"])
            for s in marked
            if s["entity_type"] in KINDS
        ]
        spans = find(row["full_text"])
        for span in gold:
            total[span[0]] += 1
            hits[span[0]] += any(overlap(span, other) for other in spans)
            exact[span[0]] += span in spans
        for span in spans:
            found[span[0]] += 1
            right[span[0]] += any(overlap(span, other) for other in gold)
    for kind in sorted(total):
        precision = f"{right[kind] / found[kind]:.3f}" if found[kind] else "-"
        n = total[kind]
        print(f"| {name} | {kind} | {n} | {hits[kind] / n:.3f} | {precision} | {exact[kind] / n:.3f} |")


def overlap(a: Span, b: Span) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def report_speed(name: str, texts: list[str], finders: dict[str, Finder], rounds: int) -> None:
    speeds: dict[str, list[float]] = {finder: [] for finder in finders}
    found: dict[str, Counter[str]] = {}
    for _ in range(rounds):
        for finder, find in finders.items():
            start = time.process_time()
            spans = [span for text in texts for span in find(text)]
            speeds[finder].append(len(texts) / (time.process_time() - start))
            found[finder] = Counter(kind for kind, _, _ in spans)
    size = sum(map(len, texts)) // len(texts)
    for finder, values in speeds.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(found[finder].items())) or "none"
        print(f"| {name} | {size:,} | {finder} | {statistics.median(values):,.0f} | {counts} |")


if __name__ == "__main__":
    main()
