"""Blocks put back into text: paragraphs apart, the items of a list and the rows of a table on lines of their own."""

import re

from puna.corpus.extract.blocks import Block
from puna.corpus.extract.markup import names

ITEMS = names("li dt dd tr td th")
LONG_CELL = 200
"""Characters; a table with longer cells lays out a page, and its cells are paragraphs."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\xad\u200b\u2028\u2029\ufeff\ufffe\uffff]")
ASCII_CONTROL = {code: None for code in range(128) if CONTROL.match(chr(code))}
"""The same for str.translate, which is several times faster where all is ASCII."""
TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)


def render(blocks: list[Block]) -> str:
    pieces: list[str] = []
    before = None
    for block in blocks:
        if before:
            pieces.append(separator(before, block))
        pieces.append(block.text)
        before = block
    return tidy("".join(pieces))


def separator(before: Block, block: Block) -> str:
    """What stands between two blocks: a tab between the cells of a row, a line or an empty line between others."""
    if cell(before) and cell(block):
        if before.row != block.row:
            return "\n" if before.group == block.group else "\n\n"
        return "\t" if before.cell != block.cell else " "
    if before.tag in ITEMS and block.tag in ITEMS:
        return "\n"
    if before.preformatted and block.preformatted and before.row:
        return "\n"
    return "\n\n"


def cell(block: Block) -> bool:
    """Whether it is, or is part of, the cell of a table of data."""
    return block.row > 0 and not block.preformatted and len(block.text) < LONG_CELL


def tidy(text: str) -> str:
    """Without control characters, trailing blanks, and more than one empty line at a time."""
    text = text.replace("\r\n", "\n").replace("\xa0", " ")
    text = text.translate(ASCII_CONTROL) if text.isascii() else CONTROL.sub("", text)
    if " \n" in text or "\t\n" in text or text[-1:] in (" ", "\t"):
        text = TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n")
