"""What the network sees of each block: numbers about its text and its surroundings."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from puna.corpus.extract.blocks import Block
from puna.corpus.extract.metadata import Claims

OPENING = 60
"""Characters of a block whose words count: "Posted by", "Related:", "Add to cart"."""
HEADINGS = frozenset(("h2", "h3", "h4", "h5", "h6"))
LEVELS = 4
"""Enclosing elements looked at; those that hold no more blocks than the one inside do not count."""
DESCRIBED, LEAST_DESCRIBED = 40, 30
"""Characters in which a block and a description of the page must agree; shorter ones tell nothing."""


def numbers(rows: np.ndarray, kin: np.ndarray, containers: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[blocks, features] float32; rows [blocks, 17] from `measure`, kin [blocks, 18] from `alike`, levels [containers,
    LEVELS] from `enclosing`."""
    table = rows.T.astype(np.float32)
    length, links, words, commas, stops, lines, depth, shallowest = table[:8]
    order = np.arange(len(rows), dtype=np.float32)
    up = np.concatenate([[np.float32(0)], depth[:-1] - shallowest[1:]])
    before = np.cumsum(length)
    total = before[-1]
    own = np.empty((18, len(rows)), np.float32)
    counts = [length, words, commas, stops, lines, depth, depth - shallowest, np.maximum(up, 0)]
    own[[0, 2, 3, 4, 7, 9, 10, 11, 14, 15]] = np.log1p(np.array([*counts, order, len(rows) - order]))
    own[1] = links / length
    own[5] = (commas + stops) / words
    own[6] = length / words / 8
    own[8] = np.log(kin[:, 0].astype(np.float32))
    own[12] = before / total
    own[13] = order / len(rows)
    own[16] = np.log(total)
    own[17] = links.sum() / total
    around = surroundings(containers, levels[kin[:, 1]], length, links)
    return np.concatenate([own.T, table[8:].T, around, likeness(kin, total)], 1).clip(-4, 16)


def measure(blocks: list[Block], title: str, vocabulary: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Counts and signs of each block, [blocks, 17] int32, and the bit sets of their first words, [blocks, bytes]."""
    title, width = title.lower(), (len(vocabulary) + 7) // 8
    rows = np.array([(*_counts(block), *_signs(block, title)) for block in blocks], np.int32)
    begun = b"".join(openings(block.text, vocabulary).to_bytes(width, "little") for block in blocks)
    return rows, np.frombuffer(begun, np.uint8).reshape(len(blocks), width)


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


def told(blocks: list[Block], claims: Claims) -> np.ndarray:
    """What the page says about its content, [blocks, 2 + kinds] float32: whether a block says what a description of the
    page does, its place to the first that does (-1, 0, 1; 0 where none does), and the kinds that the page claims."""
    rows = np.zeros((len(blocks), 2 + len(claims.kinds)), np.float32)
    rows[:, 2:] = claims.kinds
    said = {
        i
        for text in {text.rstrip(".… ") for text in claims.descriptions}
        if len(text) >= LEAST_DESCRIBED
        for i, block in enumerate(blocks)
        if text[:DESCRIBED] in block.text or (len(block.text) >= LEAST_DESCRIBED and block.text[:DESCRIBED] in text)
    }
    if said:
        rows[list(said), 0] = 1
        rows[:, 1] = np.sign(np.arange(len(blocks)) - min(said))
    return rows


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


def alike(blocks: list[Block], containers: np.ndarray) -> np.ndarray:
    """How much of the page is like each block, and where it stands, [blocks, 18] int32: copies of its text; its
    container; whether it is below an h1, blocks since that, whether it is one; whether it is in the element with the
    most text of its own, the sign of its place to the first block of this element and to the last; blocks since a
    lower heading. Then the number, the characters and those in links of the blocks with the same innermost tags, with
    the same enclosing tags and depth, and beside it in the same element."""
    length = np.array([len(block.text) for block in blocks])
    links = np.minimum([block.links for block in blocks], length)
    places = np.array([block.container for block in blocks])
    copies = Counter(block.text for block in blocks)
    sums: list[np.ndarray] = []
    texts = ids = np.zeros(0, int)
    for keys in (
        [(block.tag, block.near) for block in blocks],
        [(block.tag, block.hints, block.depth) for block in blocks],
        np.maximum(containers[places, 0], 0).tolist(),
    ):
        known: dict = {}
        ids = np.array([known.setdefault(key, len(known)) for key in keys])
        texts, linked = np.bincount(ids, length), np.bincount(ids, links)
        sums += [np.bincount(ids)[ids], texts[ids], linked[ids]]
    order = np.arange(len(blocks))
    first = np.array([block.tag == "h1" for block in blocks])
    title = np.maximum.accumulate(np.where(first, order, -1))
    heading = np.maximum.accumulate(np.where([block.tag in HEADINGS for block in blocks], order, -1))
    most = ids == np.argmax(texts)
    start, end = np.flatnonzero(most)[[0, -1]]
    columns = [[copies[block.text] for block in blocks], places]
    columns += [title >= 0, np.where(title >= 0, order - title, 0), first]
    columns += [most, np.sign(order - start), np.sign(order - end), order - heading]
    return np.stack([*columns, *sums], 1).astype(np.int32)


def likeness(kin: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of the blocks that are like each, by the three kinds of `alike`: share of the text, number, mean length and share
    of links. Then where it stands; [blocks, 19] float32."""
    count, text, links = kin[:, 9:].reshape(-1, 3, 3).astype(np.float64).transpose(2, 0, 1)
    shares = np.stack([text / total, np.log1p(count), np.log1p(text / count), links / text], 2)
    standing = kin[:, 2:9].astype(np.float32)
    standing[:, [1, 6]] = np.log1p(standing[:, [1, 6]])
    return np.concatenate([shares.reshape(len(kin), -1), standing], 1).astype(np.float32)
