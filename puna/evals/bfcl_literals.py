"""Literals of Java and JavaScript as BFCL reads them: a call's arguments come as text in the language.

Text that is no literal of its type stays text, and then counts as the name of a variable. Lists are split at every
comma, as in the published scorer.
"""

import re
from collections.abc import Callable
from typing import Any

JAVA: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    "boolean": bool,
    **dict.fromkeys(("char", "String", "any"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "Set": set,
}
JAVASCRIPT: dict[str, type] = {
    **dict.fromkeys(("integer", "Bigint"), int),
    "float": float,
    "Boolean": bool,
    **dict.fromkeys(("String", "any"), str),
    "array": list,
    "dict": dict,
}

_WHOLE, _REAL = r"-?\d+", r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_Rule = tuple[str, Callable[[str], Any]]


def _without_suffix(kind: type) -> Callable[[str], Any]:
    return lambda text: kind(text[:-1])


_BOOLEAN: _Rule = ("true|false", "true".__eq__)
_JAVA_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("byte", "short", "integer"), (_WHOLE, int)),
    "long": (f"{_WHOLE}[lL]", _without_suffix(int)),
    "float": (f"{_REAL}[fF]", _without_suffix(float)),
    "double": (_REAL, float),
    "boolean": _BOOLEAN,
}
_JAVASCRIPT_RULES: dict[str, _Rule] = {
    "integer": (_WHOLE, int),
    "float": (r"-?\d+(?:\.\d+)?", float),
    "Bigint": (f"{_WHOLE}n", _without_suffix(int)),
    "Boolean": _BOOLEAN,
}


def read_java(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of Java text of a type; `inner` is the type of a list's elements."""
    if kind == "ArrayList":
        return _array_list(text, inner)
    if kind == "Array":
        found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
        elements = [x.strip() for x in found[1].split(",") if x.strip()] if found else []
        return [read_java(x, inner) if inner else _guess_java(x) for x in elements] if found else text
    if kind == "HashMap":
        found = re.search(r"new\s+HashMap<.*?>\s*\(\)(?:\s*\{\s*\{?\s*(.*?)\s*\}?\s*\})?", text, re.DOTALL)
        pairs = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", found[1] or "") if found else []
        return {key: _guess_java(value.strip()) for key, value in pairs} if found else text
    return _read(text, _JAVA_RULES.get(kind))


def read_javascript(text: str, kind: str, inner: str | None = None) -> Any:
    """The value of JavaScript text of a type; `inner` is the type of a list's elements."""
    if kind == "String":
        inside = _unquoted(text, "\"'")
        return text if inside is None else inside
    if kind == "array":
        return _javascript_array(text.strip(), inner)
    if kind == "dict":
        return _javascript_object(text.strip())
    return _read(text, _JAVASCRIPT_RULES.get(kind))


def _read(text: str, rule: _Rule | None) -> Any:
    return rule[1](text) if rule and re.fullmatch(rule[0], text) else text


def _unquoted(text: str, marks: str) -> str | None:
    """The inside of a quoted text."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in marks else None


def _guess(text: str, rules: list[_Rule], marks: str) -> Any:
    """The value of text whose type nobody gives."""
    inside = _unquoted(text, marks)
    if inside is not None:
        return inside
    for rule in [_BOOLEAN, *rules]:
        value = _read(text, rule)
        if not isinstance(value, str):
            return value
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _guess_java(text: str) -> Any:
    return _guess(text, [_JAVA_RULES["long"], _JAVA_RULES["float"]], '"')


def _guess_javascript(text: str) -> Any:
    return _guess(text.strip(), [], "\"'")


def _array_list(text: str, inner: str | None) -> Any:
    filled = re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text)
    added = re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL)
    if filled:
        elements = filled[1].split(",")
    elif added:
        elements = re.findall(r"add\((.+?)\)", added[1])
    elif re.search(r"new\s+ArrayList<\w*>\(\)", text):
        elements = []
    else:
        return text
    if inner in ("char", "String"):
        return [x.strip()[1:-1] for x in elements]
    return [read_java(x.strip(), inner) if inner else _guess_java(x.strip()) for x in elements]


def _javascript_array(text: str, inner: str | None) -> Any:
    rows = re.match(r"(?:\[|new\s+Array\()\s*(\[.*?\]\s*(?:,\s*\[.*?\]\s*)*)[\])]", text)
    if rows:
        return [[_guess_javascript(x) for x in row.split(",")] for row in re.findall(r"\[(.*?)\]", rows[1])]
    found = re.match(r"\[(.*?)\]|new\s+Array\((.*?)\)", text)
    if not found:
        return text
    inside = (found[1] if found[1] is not None else found[2]).strip()
    elements = inside.split(",") if inside else []
    return [read_javascript(x.strip(), inner) if inner else _guess_javascript(x) for x in elements]


def _javascript_object(text: str) -> Any:
    found = re.match(r"\{(.*?)\}", text)
    if not found:
        return text
    pairs = re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", found[1])
    return {key.strip().strip("'\""): _javascript_value(value.strip()) for key, value in pairs}


def _javascript_value(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _guess_javascript(text.strip("'\""))
