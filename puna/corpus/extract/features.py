"""What the network sees of each block: numbers about its text and its surroundings."""

from itertools import accumulate

import numpy as np

from puna.corpus.extract.blocks import Block, Container

LEVELS = 4
"""Enclosing elements looked at; those that hold no more blocks than the one inside do not count."""
ENDS = tuple(".!?。！？…।:;,")


def numbers(blocks: list[Block], containers: list[Container], title: str) -> np.ndarray:
    """[blocks, features] float32."""
    seen: dict[str, int] = {}
    for block in blocks:
        seen[block.text] = seen.get(block.text, 0) + 1
    title = title.lower()
    rows = []
    for block in blocks:
        text = block.text
        last = text[-1]
        rows.append(
            (
                len(text),
                min(block.links, len(text)),
                text.count(" ") + 1,
                text.count(",") + text.count("，") + text.count("、"),
                text.count(". ") + text.count("。"),
                last in ".!?。！？…।",
                last == ":",
                text[0].islower(),
                text.isupper(),
                text[0].isdigit(),
                text.count("\n"),
                seen[text],
                len(text) > 8 and text.lower() in title,
                block.preformatted,
                block.tag == "img",
                block.row > 0,
                block.depth,
                block.depth - block.shallowest,
                block.shallowest,
            )
        )
    raw = np.array(rows, np.float32).reshape(len(blocks), -1)
    around = surroundings(blocks, containers, raw[:, 0], raw[:, 1])
    length, links, words, commas, stops = raw[:, :5].T
    total = np.cumsum(length)
    count = np.arange(len(blocks), dtype=np.float32)
    up = np.zeros_like(count)
    up[1:] = raw[:-1, 16] - raw[1:, 18]
    own = [
        np.log1p(length),
        links / length,
        np.log1p(words),
        np.log1p(commas),
        np.log1p(stops),
        (commas + stops) / words,
        length / words / 8,
        np.log1p(raw[:, 10]),
        np.log(raw[:, 11]),
        np.log1p(raw[:, 16]),
        np.log1p(raw[:, 17]),
        np.log1p(np.maximum(up, 0)),
        total / total[-1],
        count / len(blocks),
        np.log1p(count),
        np.log1p(len(blocks) - count),
        np.full_like(count, np.log(total[-1])),
        np.full_like(count, links.sum() / total[-1]),
    ]
    return np.concatenate([np.stack(own, 1), raw[:, 5:10], raw[:, 12:16], around], 1).clip(-4, 16)


def surroundings(blocks: list[Block], containers: list[Container], length: np.ndarray, links: np.ndarray) -> np.ndarray:
    """Of LEVELS enclosing elements of each block: text, share of links, blocks, mean length of a block, as logarithms."""
    chain: dict[int, tuple[int, ...]] = {}
    for block in blocks:
        at = block.container
        if at in chain:
            continue
        found: list[int] = []
        size, level = 1, at
        while level >= 0 and len(found) < LEVELS:
            here = containers[level]
            if here.end - here.start > size:
                size = here.end - here.start
                found.append(level)
            level = here.parent
        found += [found[-1] if found else 0] * (LEVELS - len(found))
        chain[at] = tuple(found)
    levels = np.array([chain[block.container] for block in blocks])
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


def bits(sets: list[int], size: int) -> np.ndarray:
    """[blocks, size] of 0 and 1."""
    width = (size + 7) // 8
    packed = np.frombuffer(b"".join(value.to_bytes(width, "little") for value in sets), np.uint8).reshape(-1, width)
    return np.unpackbits(packed, axis=1, bitorder="little")[:, :size]
