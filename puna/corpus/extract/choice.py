"""From probabilities to the blocks that are kept: code, formulas and pictures follow the text around them."""

import re

import numpy as np

from puna.corpus.extract.blocks import Block
from puna.corpus.extract.render import LONG_CELL

MARGIN = 0.35
"""Of the F1 that is to be expected, less this is the probability that a block needs."""
LEAST = 0.2
BESIDE = 0.77
"""Of that probability, is enough for a block beside one kept: losing a paragraph costs more than a line too much."""
SHORT_PAGE = 500
"""Characters; of a page with fewer, something is kept."""
PARAGRAPHS = ("p", "div", "section", "article", "body")
ALL_LINK, PROSE = 0.8, 80
"""Share of a paragraph in links that makes it a link; characters that make one prose."""
TITLES = ("h1", "h2", "h3")
HEADINGS = ("h2", "h3", "h4", "h5", "h6")
WORD = re.compile(r"[^\W\d_]+")
FILE_NAME = re.compile(
    r"\S+\.(?:jpe?g|png|gif|webp|svg|bmp|tiff?|avif)\b|^\w*\d{3,}\w*$|\b\d{3,4}x\d{3,4}", re.IGNORECASE
)
LONG_COPY = 60
"""Characters; shorter lines may well come twice."""
MIN_ALT_WORDS = 3
"""Fewer are a name or a logo."""
AS_HEADED = 0.75
"""Of the words of an alternative text so many in one heading: programs fill it in with the headline."""


def choose(blocks: list[Block], probabilities: np.ndarray) -> list[Block]:
    """The blocks of the main content, in the order of the page."""
    text = [i for i, block in enumerate(blocks) if block.tag != "img"]
    if not text:
        return []
    lengths = np.array([len(blocks[i].text) for i in text])
    probable = probabilities[text]
    threshold = max(LEAST, expected_f1(lengths, probable) - MARGIN)
    usual = threshold
    if lengths.sum() < SHORT_PAGE:
        threshold = min(threshold, 0.6 * float(probable.max()))
    kept = (probable > threshold).tolist()
    shown, likely = [blocks[i] for i in text], probable.tolist()
    keep_code(shown, kept)
    keep_beside(likely, kept, BESIDE * usual)
    keep_groups(shown, likely, kept, usual)
    keep_beside(likely, kept, BESIDE * usual)
    chosen = without_teasers(blocks, [i for i, keep in zip(text, kept) if keep])
    if len(text) < len(blocks):
        doubtful = {i for i in text if probabilities[i] > LEAST and not is_link(blocks[i])}
        chosen |= pictures(blocks, text, chosen, chosen | doubtful)
    return without_copies([blocks[i] for i in sorted(chosen)])


def expected_f1(lengths: np.ndarray, probabilities: np.ndarray) -> float:
    """The best F1, in characters, that keeping the likeliest blocks can be expected to reach: near 1 on a page whose
    content is plain, where a stricter threshold costs no content; low on one where all is doubtful. (That the best
    threshold goes with the best F1: Lipton et al., arXiv 1402.1892.)"""
    order = np.argsort(-probabilities, kind="stable")
    kept, content = np.cumsum(lengths[order]), np.cumsum(lengths[order] * probabilities[order].astype(np.float64))
    return float((2 * content / (kept + content[-1])).max())


def without_teasers(blocks: list[Block], kept: list[int]) -> set[int]:
    """Without paragraphs amid prose that are a link and nothing else: "Read more: ..."."""
    teasers = set()
    for before, here, after in zip(kept, kept[1:], kept[2:]):
        block = blocks[here]
        if block.tag in PARAGRAPHS and " " in block.text and is_link(block):
            around = (blocks[before], blocks[after])
            if all(len(b.text) > PROSE and 2 * b.links < len(b.text) for b in around):
                teasers.add(here)
    return set(kept) - teasers


def is_link(block: Block) -> bool:
    return block.links > ALL_LINK * len(block.text)


def without_copies(blocks: list[Block]) -> list[Block]:
    """Without paragraphs that came before: what a page writes for wide and for narrow screens, or quotes."""
    seen: set[str] = set()
    kept = []
    for block in blocks:
        if len(block.text) > LONG_COPY and not block.preformatted:
            if block.text in seen:
                continue
            seen.add(block.text)
        kept.append(block)
    return kept


def keep_code(blocks: list[Block], kept: list[bool]) -> None:
    """Keep all code after the first block that is kept: it is hardly ever about something else."""
    if True in kept:
        for i in range(kept.index(True), len(kept)):
            if blocks[i].preformatted:
                kept[i] = True


def keep_beside(probabilities: list[float], kept: list[bool], least: float) -> None:
    """Keep less likely blocks, down to `least`, beside those that are kept, and beside these in turn."""
    likely = [i for i, keep in enumerate(kept) if not keep and probabilities[i] > least]
    for i in likely:
        kept[i] = i > 0 and kept[i - 1]
    for i in reversed(likely):
        kept[i] = kept[i] or (i + 1 < len(kept) and kept[i + 1])


def keep_groups(blocks: list[Block], probabilities: list[float], kept: list[bool], threshold: float) -> None:
    """Keep what stands amid kept text and cannot be judged by its words: code, formulas, and the short cells of a
    table, list of definitions or figure, which stay together; a table also at the end of kept text."""
    groups, start = [block.group for block in blocks], 0
    while start < len(blocks):
        end, number = start + 1, groups[start]
        while number and end < len(blocks) and groups[end] == number:
            end += 1
        if False in kept[start:end]:
            last = end == len(blocks) or blocks[start].row > 0
            amid = (start == 0 or kept[start - 1]) and (last or probabilities[end] > BESIDE * threshold)
            if (amid or sum(probabilities[start:end]) > threshold * (end - start)) and whole(blocks[start:end]):
                kept[start:end] = [True] * (end - start)
        start = end
    for i in range(len(blocks) - 2, -1, -1):  # a heading stays with its text, a term with its definition
        if not kept[i] and kept[i + 1]:
            block, following = blocks[i], blocks[i + 1]
            term = block.tag == "dt" and following.group == block.group
            kept[i] = term or (block.tag in HEADINGS and i > 0 and kept[i - 1])


def whole(group: list[Block]) -> bool:
    """Whether it is code, a formula, or a table or list of short cells that are no links."""
    first = group[0]
    if not first.group:
        return first.preformatted or "$" in first.text or "\\" in first.text
    length = sum(len(block.text) for block in group)
    return 2 * sum(block.links for block in group) < length and max(len(block.text) for block in group) < LONG_CELL


def pictures(blocks: list[Block], text: list[int], chosen: set[int], likely: set[int]) -> set[int]:
    """Indices of pictures amid the chosen blocks, and likely ones, such as captions, whose alternative text says
    something that is not said beside them."""
    amid: list[int] = []
    before = -1
    after = iter([*text, len(blocks)])
    following = next(after)
    for i, block in enumerate(blocks):
        if i == following:
            before, following = i, next(after, len(blocks))
        if block.tag != "img" or not chosen or (before >= 0 and before not in likely):
            continue
        if following == len(blocks) or (following in likely and not is_link(blocks[following])):  # no thumbnail
            amid.append(i)
    named = [i for i in amid if len(blocks[i].text.split()) >= MIN_ALT_WORDS and not FILE_NAME.search(blocks[i].text)]
    found: set[int] = set()
    if named:
        said = "\n".join(blocks[i].text.lower() for i in sorted(chosen))
        headings = [words(blocks[i]) for i in text if blocks[i].tag in TITLES]
        for i in named:
            alt, own = blocks[i].text.lower(), words(blocks[i])
            headed = any(len(own & heading) >= AS_HEADED * len(own) for heading in headings)
            if not headed and alt not in said:
                said += "\n" + alt
                found.add(i)
    return found


def words(block: Block) -> set[str]:
    return set(WORD.findall(block.text.lower()))
