"""Reading what models reply: code in fences, grades, questions with answers; and telling them what is only material."""

import re

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)
"""A fenced block: its language and its code."""
_QUESTION = r"^\W*(?:\d+[.)]\W*)?Q(?:uestion)?\W*?:"
_PAIR = re.compile(
    rf"{_QUESTION}\W*?(.+?)\s*^\W*A(?:nswer)?\W*?:\W*?(.+?)\s*(?={_QUESTION}|\Z)", re.DOTALL | re.MULTILINE
)


def said(reply: str) -> str:
    """A reply without what the model thought aloud before it."""
    return _THOUGHTS.sub("", reply).strip()


def code_blocks(reply: str, languages: tuple[str, ...] = ("python", "py", "python3", "")) -> list[str]:
    """The fenced blocks of a reply in a language, in order."""
    return [code for language, code in FENCE.findall(said(reply)) if language.lower() in languages and code.strip()]


def one_program(reply: str) -> str | None:
    """The program of a reply: its longest block of Python. None where there is none."""
    return max(code_blocks(reply), key=len, default=None)


def material(text: str, name: str = "text") -> str:
    """A text to be worked on, between marker lines, so that nothing in it is taken for a request."""
    return f"----- {name} -----\n{text}\n----- end of {name} -----"


def grades(reply: str, criteria: tuple[str, ...]) -> dict[str, int] | None:
    """`criterion: 0 or 1` for every criterion, in any order and clothing, JSON included; None where one is missing or
    has two different grades."""
    found = {}
    for name in criteria:
        values = set(
            re.findall(rf"(?<!\w){name}[\"'*_`]*\s*[:=]\s*[\"'*_`]*([01])(?!\w|\.\d)", said(reply), re.IGNORECASE)
        )
        if len(values) != 1:
            return None
        found[name] = int(values.pop())
    return found


def pairs(reply: str) -> list[tuple[str, str]] | None:
    """The `Q: ...` and `A: ...` of a reply, in order; None where there are none."""
    return [(question.strip(" *\n"), answer.strip(" *\n")) for question, answer in _PAIR.findall(said(reply))] or None
