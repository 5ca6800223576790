"""From a page to its text: the main content as plain text without markdown marks (section 3.1.1 of the paper).

decode      bytes -> characters
blocks      characters -> blocks of text; code keeps its indentation, formulas become TeX (formulas)
network     blocks -> which of them are main content, from numbers about them (features) and fitted weights (layers)
render      blocks -> text
metadata    title, date, language, canonical address
"""

from puna.corpus.extract.blocks import MAX_DEPTH, UnusablePageError
from puna.corpus.extract.decode import decode
from puna.corpus.extract.page import Page, extract
from puna.corpus.extract.render import tidy

__all__ = ["MAX_DEPTH", "Page", "UnusablePageError", "decode", "extract", "tidy"]
