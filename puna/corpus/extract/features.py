"""What the network sees of each block: numbers about its text and its surroundings."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from puna.corpus.extract.blocks import Block

OPENING = 60
"""Characters of a block whose words count: "Posted by", "Related:", "Add to cart"."""
HEADINGS = frozenset(("h2", "h3", "h4", "h5", "h6"))
LEVELS = 4
"""Enclosing elements looked at; those that hold no more blocks than the one inside do not count."""


def numbers(blocks: list[Block], rows: np.ndarray, containers: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[blocks, features] float32; rows [blocks, 17] from `measure`, levels [containers, LEVELS] from `enclosing`."""
    texts = [block.text for block in blocks]
    copies = Counter(texts)
    copy = np.array([copies[text] for text in texts], np.float32)
    table = rows.astype(np.float32)
    length, links, words, commas, stops, lines, depth, shallowest = table[:, :8].T
    order = np.arange(len(blocks), dtype=np.float32)
    up = np.concatenate([[np.float32(0)], depth[:-1] - shallowest[1:]])
    before = np.cumsum(length)
    total = before[-1]
    own = [
        np.log1p(length),
        links / length,
        np.log1p(words),
        np.log1p(commas),
        np.log1p(stops),
        (commas + stops) / words,
        length / words / 8,
        np.log1p(lines),
        np.log(copy),
        np.log1p(depth),
        np.log1p(depth - shallowest),
        np.log1p(np.maximum(up, 0)),
        before / total,
        order / len(blocks),
        np.log1p(order),
        np.log1p(len(blocks) - order),
        np.full_like(order, np.log(total)),
        np.full_like(order, links.sum() / total),
    ]
    around = surroundings(containers, levels[[block.container for block in blocks]], length, links)
    kin = likeness(blocks, containers, length, links)
    return np.concatenate([np.stack(own, 1), table[:, 8:], around, kin], 1).clip(-4, 16)


def measure(blocks: list[Block], title: str, vocabulary: Mapping[str, int]) -> tuple[np.ndarray, list[bytes]]:
    """Counts and signs of each block, [blocks, 17] int32, and the bit sets of their first words."""
    title, width = title.lower(), (len(vocabulary) + 7) // 8
    rows = np.array([(*_counts(block), *_signs(block, title)) for block in blocks], np.int32)
    return rows, [openings(block.text, vocabulary).to_bytes(width, "little") for block in blocks]


def _counts(block: Block) -> tuple[int, ...]:
    text = block.text
    commas, stops = text.count(","), text.count(". ")
    if not text.isascii():
        commas += text.count("，") + text.count("、")
        stops += text.count("。")
    length, words, lines = len(text), text.count(" ") + 1, text.count("\n")
    return length, min(block.links, length), words, commas, stops, lines, block.depth, block.shallowest


def _signs(block: Block, title: str) -> tuple[bool, ...]:
    text = block.text
    first, last = text[0], text[-1]
    return (
        last in ".!?。！？…।",
        last == ":",
        first.islower(),
        text.isupper(),
        first.isdigit(),
        8 < len(text) <= len(title) and text.lower() in title,
        block.preformatted,
        block.tag == "img",
        block.row > 0,
    )


def opening(text: str) -> list[str]:
    """The first words of a block, in lower case, without marks."""
    return [word.strip(".,:;!?()[]«»\"'“”|•·") for word in text[:OPENING].lower().split()]


def openings(text: str, vocabulary: Mapping[str, int]) -> int:
    """Bit set of the first words of a block."""
    bits = 0
    for word in opening(text):
        bit = vocabulary.get(word)
        if bit is not None:
            bits |= 1 << bit
    return bits


def enclosing(containers: np.ndarray) -> np.ndarray:
    """Of each container itself and those around it, the nearest LEVELS that count, [containers, LEVELS] int32."""
    chains = [(0,) * LEVELS]
    rows = containers.tolist()
    for i, (parent, start, end) in enumerate(rows[1:], 1):
        above = chains[parent]
        chains.append((i, *above[:-1]) if 1 < end - start < rows[parent][2] - rows[parent][1] else above)
    return np.array(chains, np.int32)


def surroundings(containers: np.ndarray, levels: np.ndarray, length: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Of the enclosing elements of each block, levels [blocks, LEVELS]: log of the text, share of links, log of the
    blocks, log of the mean length of a block, share of the page's text; [blocks, 5 LEVELS]."""
    start, end = containers[:, 1], containers[:, 2]
    texts = np.concatenate([[0], np.cumsum(length, dtype=np.float64)])
    linked = np.concatenate([[0], np.cumsum(links, dtype=np.float64)])
    text, link, count = texts[end] - texts[start], linked[end] - linked[start], end - start
    table = np.stack(
        [
            np.log1p(text),
            link / np.maximum(text, 1),
            np.log1p(count),
            np.log1p(text / np.maximum(count, 1)),
            text / texts[-1],
        ],
        1,
    )
    return table[levels].reshape(len(levels), -1).astype(np.float32)


def likeness(blocks: list[Block], containers: np.ndarray, length: np.ndarray, links: np.ndarray) -> np.ndarray:
    """How much of the page is written like a block: of the blocks with the same innermost tags, with the same enclosing
    tags and depth, and beside it in the same element, their share of the text, number, mean length and share of links.
    Then where it stands to the h1, to the element with the most text of its own, and to the last heading;
    [blocks, 19] float32."""
    order = np.arange(len(blocks))
    parents = np.maximum(containers[[block.container for block in blocks], 0], 0)
    columns: list[np.ndarray] = []
    texts = ids = np.zeros(0)
    for keys in (
        [(block.tag, block.near) for block in blocks],
        [(block.tag, block.hints, block.depth) for block in blocks],
        parents.tolist(),
    ):
        known: dict = {}
        ids = np.array([known.setdefault(key, len(known)) for key in keys])
        texts, linked, count = np.bincount(ids, length), np.bincount(ids, links), np.bincount(ids)
        table = [texts / length.sum(), np.log1p(count), np.log1p(texts / count), linked / texts]
        columns += list(np.stack(table)[:, ids])
    tags = [block.tag for block in blocks]
    first = np.array([tag == "h1" for tag in tags])
    since = order - np.maximum.accumulate(np.where(first, order, 0))
    below = np.cumsum(first) > 0
    most = np.flatnonzero(ids == np.argmax(texts))
    heading = np.maximum.accumulate(np.where([tag in HEADINGS for tag in tags], order, -1))
    columns += [below, np.log1p(np.where(below, since, 0)), first]
    columns += [ids == np.argmax(texts), np.sign(order - most[0]), np.sign(order - most[-1]), np.log1p(order - heading)]
    return np.stack(columns, 1).astype(np.float32)
