"""Main-content extraction beside trafilatura and resiliparse: quality by kind of page, and speed, in one run.

    python benchmarks/extraction.py ../shared/data/web_html FOLDS

Needs trafilatura, lxml_html_clean for it, and the weights that extraction_fit.py --folds fits without each fold.

Pages and their gold text: the development split of WCXB (seven kinds of pages; word-level F1 of its evaluate.py) and a
part of scrapinghub's article-extraction-benchmark (4-word shingles, precision and recall averaged over pages, as in its
evaluate.py). Pages fall into folds by the hash of their domain; puna reads each page with weights fitted on the other
folds. Intervals: 95%, 2,000 resamples of pages, the same for all. Speed: CPU time, contestants in turns.
"""

import argparse
import hashlib
import json
import lzma
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

KINDS = ("article", "forum", "product", "collection", "listing", "documentation", "service")
RESAMPLES = 2000
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Sample:
    """A page with its gold text; `kind` is "benchmark article" for scrapinghub's."""

    url: str
    kind: str
    html: str
    gold: str

    @property
    def domain(self) -> str:
        """The registered domain, nearly: two labels, three under co.uk and its like."""
        labels = urlsplit(self.url).netloc.lower().split(":")[0].split(".")
        second_level = labels[-2:-1] in (["co"], ["com"], ["org"], ["ac"], ["gov"], ["net"]) and len(labels[-1]) == 2
        return ".".join(labels[-3 if second_level else -2 :])

    def fold(self, folds: int) -> int:
        """By the hash of the domain, whose pages are all in one."""
        return int.from_bytes(hashlib.sha256(self.domain.encode()).digest()[:4], "big") % folds


def read_lines(path: Path) -> list[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load(folder: Path) -> list[Sample]:
    samples = [
        Sample(row["url"], "benchmark article", row["html"], row["gold_text"])
        for row in read_lines(folder / "scrapinghub_aeb.jsonl.xz")
    ]
    for row in read_lines(folder / "wcxb_dev.jsonl.xz"):
        truth = row["ground_truth"]
        gold = truth["ground_truth"].get("main_content") or ""
        samples.append(Sample(truth["url"], row["page_type"], row["html"], gold))
    return samples


def word_f1(found: str, gold: str) -> float:
    """F1 of the words as a multiset, as WCXB scores a page."""
    a, b = Counter(WORD.findall(found.lower())), Counter(WORD.findall(gold.lower()))
    if not b:
        return float(not a)
    return 2 * (a & b).total() / (a.total() + b.total())


def shingles(text: str) -> Counter[tuple[str, ...]]:
    words = WORD.findall(text)
    return Counter(tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)) if words)


def shingle_scores(found: str, gold: str) -> tuple[float, float]:
    """Precision and recall of the 4-word shingles; NaN where undefined."""
    a, b = shingles(found), shingles(gold)
    common = (a & b).total()
    return common / a.total() if a else np.nan, common / b.total() if b else np.nan


def article_f1(scores: np.ndarray) -> float:
    """F1 of the mean precision and the mean recall over [pages, 2], as the article benchmark scores a run."""
    precision, recall = np.nanmean(scores, axis=0)
    return float(2 * precision * recall / (precision + recall))


def mean(scores: np.ndarray) -> float:
    return float(scores.mean())


def contestants(fitted: list[Path]) -> dict[str, Callable[[Sample], str]]:
    """`fitted`: the weights fitted without each fold."""
    from resiliparse.extract.html2text import extract_plain_text
    from trafilatura import extract as trafilatura  # pyright: ignore[reportMissingImports]

    from puna.corpus.extract import extract, network, page

    def puna(sample: Sample) -> str:
        page.load_network = lambda: network.load_network(fitted[sample.fold(len(fitted))])
        return extract(sample.html).text

    def resiliparse(sample: Sample) -> str:
        return extract_plain_text(sample.html, main_content=True, alt_texts=False, list_bullets=False)

    return {
        "puna": puna,
        "trafilatura, fast": lambda sample: trafilatura(sample.html, fast=True) or "",
        "trafilatura": lambda sample: trafilatura(sample.html) or "",
        "resiliparse": resiliparse,
    }


def run(samples: list[Sample], names: dict[str, Callable[[Sample], str]]) -> tuple[dict, dict]:
    """Texts [pages] and CPU seconds [pages] of every contestant, which take turns page by page."""
    texts: dict[str, list[str]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for sample in samples:
        for name, extract in names.items():
            start = time.process_time()
            texts[name].append(extract(sample))
            seconds[name].append(time.process_time() - start)
    return texts, {name: np.array(values) for name, values in seconds.items()}


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> str:
    """The statistic over the pages, with its bootstrap interval."""
    random = np.random.default_rng(0)  # the same resamples for every contestant of a row
    draws = [statistic(values[random.integers(0, len(values), len(values))]) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{statistic(values):.3f} ({low:.3f}-{high:.3f})"


def quality(samples: list[Sample], texts: dict[str, list[str]]) -> None:
    names = list(texts)
    print(f"| pages | count | {' | '.join(names)} | puna minus the best peer |")
    print("|---" * (len(names) + 3) + "|")
    for kind in ("benchmark article", *KINDS, "all of WCXB"):
        group = KINDS if kind == "all of WCXB" else (kind,)
        chosen = [i for i, sample in enumerate(samples) if sample.kind in group]
        if kind == "benchmark article":
            score, statistic = shingle_scores, article_f1
        else:
            score, statistic = word_f1, mean
        scores = {name: np.array([score(texts[name][i], samples[i].gold) for i in chosen]) for name in names}
        cells = [interval(scores[name], statistic) for name in names]
        best = max(names[1:], key=lambda name, f1=statistic, values=scores: f1(values[name]))
        pair = np.stack([scores[names[0]], scores[best]], axis=-1)
        margin = interval(pair, lambda both, f1=statistic: f1(both[..., 0]) - f1(both[..., 1]))
        print(f"| {kind} | {len(chosen)} | {' | '.join(cells)} | {margin} |")


def speed(samples: list[Sample], seconds: dict[str, np.ndarray]) -> None:
    print("\n| contestant | documents/s/core, articles | against trafilatura, fast | all pages | against it |")
    print("|---|---|---|---|---|")
    articles = np.array([sample.kind == "benchmark article" for sample in samples])
    for name, spent in seconds.items():
        peer = seconds["trafilatura, fast"]
        columns = [
            f"{1 / spent[mask].mean():,.0f} | {peer[mask].sum() / spent[mask].sum():.1f}x"
            for mask in (articles, np.ones_like(articles))
        ]
        print(f"| {name} | {' | '.join(columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with wcxb_dev.jsonl.xz and scrapinghub_aeb.jsonl.xz")
    parser.add_argument("fitted", type=Path, help="the folder that extraction_fit.py --folds wrote")
    parser.add_argument("--every", type=int, default=1, help="take every n-th page only")
    arguments = parser.parse_args()
    samples = load(arguments.folder)[:: arguments.every]
    fitted = [arguments.fitted / f"fold{fold}.json" for fold in range(len(list(arguments.fitted.glob("fold*.json"))))]
    names = contestants(fitted)
    for extract in names.values():
        for sample in samples[:50]:  # warm up; loads the weights
            extract(sample)
    texts, seconds = run(samples, names)
    quality(samples, texts)
    speed(samples, seconds)


if __name__ == "__main__":
    main()
