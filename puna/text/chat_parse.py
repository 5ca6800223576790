"""From what a model wrote to a message: plain content, or calls of tools.

Every form that Llama 3.1 models use is read, whichever profile they were asked in:

    {"name": "f", "parameters": {...}}                          functions, hf profile
    {"type": "function", "name": "f", "parameters": {...}}      functions, meta profile
    <function=f>{...}</function>                                functions, custom tag
    [f(a=1), g(b="x")]                                          functions, Llama 3.2's list
    brave_search.call(query="...")                              built-in tools
    <|python_tag|>print(1)                                      code

Several calls may follow one another, with ";" or "," between them. Output that is not wholly calls stays
content, word for word: nothing is repaired, because a repair (single for double quotes, say) breaks arguments
that were right.
"""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from puna.text.expression import parse_expression
from puna.text.message import BUILTIN_ARGUMENT, Message, ToolCall
from puna.text.tokenizer import Tokenizer

_JSON = json.JSONDecoder(strict=False)  # models write newlines in strings as they are
_SEPARATOR = re.compile(r"\s*[;,]?\s*")
_FUNCTION_TAG, _FUNCTION_END = re.compile(r"<function=([^<>{}\s]+)>\s*"), re.compile(r"\s*</function>")
# Quotes in an argument are not escaped, so an argument ends where the message does or another call follows.
_BUILTIN_CALL = re.compile(
    rf'({"|".join(BUILTIN_ARGUMENT)})\.call\((\w+)="(.*?)"\)'
    r"(?=\s*(?:\Z|[;,]\s*(?:\{|<function=|\w+\.call\()))",
    re.DOTALL,
)


def parse(output: str | Sequence[int], tokenizer: Tokenizer | None = None) -> Message:
    """The assistant's message in a model's output, given as text or, with its tokenizer, as token ids.

    Ids are exact: only the special token python_tag counts, not a text that spells it. A stop token at the
    end is dropped. Text after python_tag that is no known call is code, for code_interpreter.
    """
    if isinstance(output, str):
        for end in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"):
            output = output.removesuffix(end)
        content, tag, body = output.partition("<|python_tag|>")
        tagged = bool(tag)
    else:
        if tokenizer is None:
            raise ValueError("parse: token ids need the tokenizer they come from")
        ids = list(output)
        start = ids.index(tokenizer.python_tag_id) if tokenizer.python_tag_id in ids else len(ids)
        content, body = (tokenizer.decode(part, skip_special=True) for part in (ids[:start], ids[start:]))
        tagged = start < len(ids)
    calls = calls_in(body if tagged else content)
    if calls:
        return Message("assistant", content if tagged else "", calls)
    if tagged and body.strip():
        return Message("assistant", content, [ToolCall("code_interpreter", {"code": body})])
    return Message("assistant", content)


def calls_in(text: str) -> list[ToolCall]:
    """All calls in a text that holds nothing else; otherwise none."""
    text = text.strip()
    if text.startswith("["):
        return _python_list(text)
    calls, position = [], 0
    while position < len(text):
        try:
            call, position = call_at(text, position)
        except (ValueError, RecursionError):  # not a call, or nested too deep to be one
            return []
        calls.append(call)
        separator = _SEPARATOR.match(text, position)
        position = separator.end() if separator else position
    return calls


def call_at(text: str, position: int) -> tuple[ToolCall, int]:
    """The call that starts at `position` and where it ends; ValueError if there is none."""
    if builtin := _BUILTIN_CALL.match(text, position):
        name, argument, value = builtin.groups()
        return ToolCall(name, {argument: value}), builtin.end()
    if tag := _FUNCTION_TAG.match(text, position):
        arguments, end = _JSON.raw_decode(text, tag.end())
        if not isinstance(arguments, dict):
            raise ValueError("arguments are no object")
        close = _FUNCTION_END.match(text, end)
        return ToolCall(tag[1], arguments), close.end() if close else end
    value, end = _JSON.raw_decode(text, position)
    return _from_json(value), end


def _from_json(value: Any) -> ToolCall:
    """A JSON object is a call if it has a name, arguments, and nothing that a call has not."""
    if isinstance(value, dict) and value.get("type", "function") == "function":
        arguments = value.get("parameters", value.get("arguments"))
        known = {"type", "name", "parameters", "arguments"}
        if isinstance(value.get("name"), str) and isinstance(arguments, dict) and value.keys() <= known:
            return ToolCall(value["name"], arguments)
    raise ValueError("not a call")


def _python_list(text: str) -> list[ToolCall]:
    """Calls written as a Python list, with keyword arguments that are literals."""
    try:
        items = parse_expression(text)
        if not isinstance(items, ast.List):
            return []
        return [_from_python(item) for item in items.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _from_python(item: ast.expr) -> ToolCall:
    if not isinstance(item, ast.Call) or not isinstance(item.func, ast.Name):
        raise ValueError("not a call")
    arguments = {word.arg: ast.literal_eval(word.value) for word in item.keywords}
    if item.args or None in arguments:  # None: **mapping
        raise ValueError("not a call by keywords alone")
    # Through JSON, so that arguments are what the other forms give: TypeError for a set, lists for tuples.
    return _from_json({"name": item.func.id, "parameters": json.loads(json.dumps(arguments))})
