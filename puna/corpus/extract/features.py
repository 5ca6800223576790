"""What the network sees of each block: numbers about its text and its surroundings."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from puna.corpus.extract.blocks import Block, Container

OPENING = 60
"""Characters of a block whose words count: "Posted by", "Related:", "Add to cart"."""
LEVELS = 4
"""Enclosing elements looked at; those that hold no more blocks than the one inside do not count."""


def numbers(blocks: list[Block], containers: list[Container], title: str) -> np.ndarray:
    """[blocks, features] float32."""
    copies = Counter(block.text for block in blocks)
    title = title.lower()
    table = np.array([(copies[block.text], *_counts(block), *_signs(block, title)) for block in blocks], np.float32)
    copy, length, links, words, commas, stops, lines, depth, shallowest = table[:, :9].T
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
    around = surroundings(blocks, containers, length, links)
    return np.concatenate([np.stack(own, 1), table[:, 9:], around], 1).clip(-4, 16)


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


def surroundings(blocks: list[Block], containers: list[Container], length: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Of LEVELS enclosing elements of each block: log of the text, share of links, log of the blocks, log of the mean
    length of a block, share of the page's text; [blocks, 5 LEVELS]."""
    chains: list[tuple[int, ...]] = []
    for i, container in enumerate(containers):
        if i == 0:
            chains.append((0,) * LEVELS)
            continue
        above = chains[container.parent]
        size = container.end - container.start
        outer = containers[container.parent]
        chains.append((i, *above[:-1]) if 1 < size < outer.end - outer.start else above)
    levels = np.array([chains[block.container] for block in blocks])
    start = np.array([container.start for container in containers])
    end = np.array([container.end for container in containers])
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
    return table[levels].reshape(len(blocks), -1).astype(np.float32)
