"""Which part of the mix a document belongs to: general, math, code or multilingual (section 3.1.2).

The paper trains classifiers for this on labels of Llama 2. Here a page is taken at the word of the folder it lies in,
and otherwise judged by how dense its signs of mathematics and of code are; both rules are ours.
"""

import re

from puna.corpus.read import PARTS

MATH = re.compile(
    r"\\(?:frac|sum|int|sqrt|mathbf|mathbb|mathrm|left|cdot|alpha|beta|theta|lambda|partial|infty|le|ge|in)\b"
    r"|[∑∏∫∂√∞≤≥≠≈∈∉⊂⊆∪∩∀∃⇒⇔±×÷πθλΔΣΩℝℤℕ]"
    r"|\b(?:theorem|lemma|corollary|proof|equations?|polynomials?|integers?|matri(?:x|ces)|derivatives?|integrals?"
    r"|vectors?|eigenvalues?|algebra|probability|prime)\b",
    re.IGNORECASE,
)
CODE = re.compile(
    r"^\s*(?:>>>|\$ |#include\b|import \w|from \w+ import\b|def \w|class \w+[:({]|(?:public|private|static)\s+\w"
    r"|return\b.*;?$|(?:if|for|while)\b.*[:{]$|(?:var|let|const)\s+\w+\s*=|function\b.*\{$|SELECT\b|INSERT\b)"
    r"|[;{}]$|^\s+\S+ = \S|^\s*(?://|/\*)",
    re.MULTILINE,
)
MATH_DENSITY = 0.015  # signs for each word
CODE_DENSITY = 0.10  # signs for each line


def part_of(text: str, language: str, folder: str | None) -> str:
    """The part, from the folder it lies in if that names one; what is not English is always `multilingual`."""
    if language != "en":
        return "multilingual"
    if folder in PARTS and folder != "multilingual":
        return folder
    if len(MATH.findall(text)) > MATH_DENSITY * len(text.split()):
        return "math"
    return "code" if len(CODE.findall(text)) > CODE_DENSITY * (text.count("\n") + 1) else "general"
