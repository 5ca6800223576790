"""Which blocks of a page are content, by the gold text: what extraction_fit.py teaches."""

import re
from bisect import bisect_left
from collections import defaultdict

import numpy as np

TOKEN = re.compile(r"\w+")
COMMON = 60
"""Places of a 3-gram in the gold text from which it tells nothing, as of a table full of zeros."""
PASSES = 2
"""Over page and gold text; the later ones find what the gold text has in another order than the page."""


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def label(texts: list[str], gold: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each block the share of words that stand in the gold text at this place, and the number of its words. The two
    are aligned: that a headline or a teaser says what an article says as well does not make it content."""
    lists = [tokens(text) for text in texts]
    count = np.array([len(words) for words in lists], np.float32)
    ends = np.cumsum(count).astype(int)
    said = np.concatenate([[0], np.cumsum(aligned([word for words in lists for word in words], tokens(gold)))])
    shares = (said[ends] - said[ends - count.astype(int)]) / np.where(count, count, np.nan)
    return shares.astype(np.float32), count


def aligned(page: list[str], gold: list[str]) -> np.ndarray:
    """Which words of a page [words] are those of the gold text: the longest common subsequence that consists of
    3-grams, then the same of what is left of both."""
    found, told = np.zeros(len(page), bool), np.zeros(len(gold), bool)
    width = len(gold)
    for _ in range(PASSES):
        places: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for j in range(width - 2):
            if not told[j : j + 3].any():
                places[tuple(gold[j : j + 3])].append(j)
        starts = []  # of 3-grams that are the same: i and the distance of j from the end, as one number
        for i in range(len(page) - 2):
            same = places.get(tuple(page[i : i + 3]), ())
            if len(same) <= COMMON and not found[i : i + 3].any():
                starts += [(i + 1) * width - 1 - j for j in same]
        pairs = np.unique(np.add.outer(np.array(starts, np.int64), np.arange(3) * (width - 1)))
        i, j = pairs // width, width - 1 - pairs % width
        chain = longest_chain(j.tolist())
        found[i[chain]] = told[j[chain]] = True
    return found


def longest_chain(values: list[int]) -> list[int]:
    """Where the longest subsequence that grows stands; the latest where several would do."""
    least: list[int] = []  # of the subsequences of each length, the least last value
    last: list[int] = []  # where it stands
    before = [-1] * len(values)
    for place, value in enumerate(values):
        length = bisect_left(least, value)
        before[place] = last[length - 1] if length else -1
        least[length : length + 1], last[length : length + 1] = [value], [place]
    chain, place = [], last[-1] if last else -1
    while place >= 0:
        chain.append(place)
        place = before[place]
    return chain


def label_segments(texts: list[str], segments: dict) -> tuple[np.ndarray, np.ndarray]:
    """From segments that must be found and that must not: NaN for blocks with neither."""
    wanted, unwanted = ([" ".join(tokens(s)) for s in segments.get(key) or []] for key in ("with", "without"))
    labels, count = np.full(len(texts), np.nan, np.float32), np.zeros(len(texts), np.float32)
    for i, text in enumerate(texts):
        words = tokens(text)
        line, count[i] = " ".join(words), len(words)
        if any(s and s in line for s in wanted):
            labels[i] = 1
        elif any(s and s in line and len(line) < 4 * len(s) + 40 for s in unwanted):
            labels[i] = 0
    return labels, count
