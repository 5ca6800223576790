"""A Python function becomes a tool: its name, docstring and type hints are the JSON schema that the model reads."""

import importlib.util
import inspect
import json
import re
import time
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from puna.errors import PunaError
from puna.text.message import ToolCall

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_PYTHON_TYPES = {name: kind for kind, name in JSON_TYPES.items()} | {"null": types.NoneType, "number": (int, float)}


@dataclass(frozen=True)
class ToolResult:
    """What a call gave.

    Attributes:
        text: what the model is told.
        images: PNG files.
        seconds: how long the call took.
        error: whether it failed; `text` then begins with "error: ".
    """

    text: str
    images: list[bytes] = field(default_factory=list)
    seconds: float = 0.0
    error: bool = False


@dataclass(frozen=True)
class Tool:
    """A function and its schema in OpenAI's form.

    Attributes:
        function: called with the arguments by name; may return a `ToolResult` itself.
        builtin: the model knows it by name (`Chat.builtin_tools`) and is not shown the schema.
        serial: its calls have to run one after another.
    """

    function: Callable[..., Any]
    schema: dict[str, Any]
    builtin: bool = False
    serial: bool = False

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]

    @property
    def description(self) -> str:
        return self.schema["function"].get("description", "")


def make_tool(function: Callable[..., Any]) -> Tool:
    """The tool of a function with type hints and a docstring.

    The docstring's first paragraph describes the function; its `Args:` (or `:param name:`) describe the arguments.
    Types: str, int, float, bool, list[...], dict[str, ...], Literal, Enum, unions and Optional of these.
    """
    name = getattr(function, "__name__", type(function).__name__)
    docstring = inspect.getdoc(function) or ""
    description = " ".join(docstring.partition("\n\n")[0].split())
    if not description:
        raise PunaError(f"tool {name} has no docstring; its first line tells the model what it does")
    hints, told = typing.get_type_hints(function), _argument_descriptions(docstring)
    properties, required, enums = {}, [], {}
    for argument, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PunaError(f"tool {name}: {parameter} cannot be given by name; write the arguments out")
        hint = hints.get(argument)
        schema = None if hint is None else _schema(hint)
        if schema is None:
            raise PunaError(
                f"tool {name}: give {argument} a type hint out of str, int, float, bool, list, dict, Literal and Enum"
            )
        properties[argument] = schema | ({"description": told[argument]} if argument in told else {})
        enums |= {argument: hint} if inspect.isclass(hint) and issubclass(hint, Enum) else {}
        if parameter.default is parameter.empty:
            required.append(argument)
    parameters = {"type": "object", "properties": properties, "required": required}
    schema = {"name": name, "description": description, "parameters": parameters}
    return Tool(_with_enums(function, enums), {"type": "function", "function": schema})


def run_call(call: ToolCall, tools: Sequence[Tool]) -> str:
    """The result of a call as text; what goes wrong is told to the model in the result."""
    return call_tool(call, tools).text


def call_tool(call: ToolCall, tools: Sequence[Tool]) -> ToolResult:
    """The result of a call; never raises, because whatever a tool raises is the model's to know."""
    start = time.perf_counter()
    tool = next((tool for tool in tools if tool.name == call.name), None)
    try:
        if tool is None:
            names = ", ".join(tool.name for tool in tools) or "none"
            raise PunaError(f"there is no tool {call.name!r}; there are: {names}")
        check_arguments(call.arguments, tool.schema["function"].get("parameters", {}))
        result = tool.function(**call.arguments)
        result = result if isinstance(result, ToolResult) else ToolResult(_text(result))
    except Exception as error:
        result = ToolResult(f"error: {error or type(error).__name__}", error=True)
    return replace(result, seconds=time.perf_counter() - start)


def load_tools(path: Path) -> list[Tool]:
    """The tools of a Python file: its public functions. The file is run; only name one that you trust."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PunaError(f"no Python file at {path}; tools are the public functions of a .py file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = inspect.getmembers(module, lambda x: inspect.isfunction(x) and x.__module__ == module.__name__)
    return [make_tool(function) for name, function in functions if not name.startswith("_")]


def check_arguments(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    """ValueError for an argument whose type its JSON schema does not allow; missing ones are the function's to miss."""
    properties = schema.get("properties", {})
    for name, value in arguments.items():
        problem = _problem(value, properties.get(name, {}))
        if problem:
            raise ValueError(f"{name}={json.dumps(value, default=str):.80}: {problem}")


def _problem(value: Any, schema: dict[str, Any]) -> str | None:
    """What is wrong with a value, for the keywords that `make_tool` writes; others are the tool's own to check."""
    if "anyOf" in schema:
        problems = [_problem(value, choice) for choice in schema["anyOf"]]
        return None if None in problems else " or ".join(filter(None, problems))
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        return f"must be one of {json.dumps(schema['enum'])}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_a(value, kind) for kind in kinds):
        return f"must be of type {' or '.join(kinds)}"
    items = schema.get("items", {}) if isinstance(value, list) else schema.get("additionalProperties", {})
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return next(filter(None, (_problem(one, items) for one in inner)), None) if isinstance(items, dict) else None


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # which Python counts among the integers
        return kind == "boolean"
    return isinstance(value, _PYTHON_TYPES.get(kind, object))


def _schema(hint: Any) -> dict[str, Any] | None:
    """The JSON schema of a type, or None where it has none."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin is Literal:
        return _enum(list(inner))
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return _enum([member.value for member in hint])
    if origin in (Union, types.UnionType):
        return _union([{"type": "null"} if one is types.NoneType else _schema(one) for one in inner])
    kind = JSON_TYPES.get(origin or hint)
    if kind is None:
        return None
    if not inner:
        return {"type": kind}
    items = _schema(inner[-1])
    if items is None or (kind == "object" and inner[0] is not str):
        return None
    return {"type": kind} | ({} if not items else {"items" if kind == "array" else "additionalProperties": items})


def _enum(values: list[Any]) -> dict[str, Any] | None:
    kinds = {JSON_TYPES.get(type(value)) for value in values}
    if None in kinds:
        return None
    return ({"type": kinds.pop()} if len(kinds) == 1 else {}) | {"enum": values}


def _union(choices: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    if any(choice is None for choice in choices):
        return None
    plain = [choice["type"] for choice in choices if choice and choice.keys() == {"type"}]
    return {"type": plain} if len(plain) == len(choices) else {"anyOf": choices}


def _argument_descriptions(docstring: str) -> dict[str, str]:
    """Argument -> description out of an `Args:` section (Google's style) and `:param name:` lines (Sphinx's)."""
    found = dict(re.findall(r":param (?:[^:\n]+ )?(\w+):\s*(.+(?:\n[ \t]+.+)*)", docstring))
    section = re.search(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if section:
        lines = inspect.cleandoc(section[1])
        found |= dict(re.findall(r"^(\w+)(?: \([^)\n]*\))?:\s*(.+(?:\n[ \t]+.+)*)", lines, re.MULTILINE))
    return {name: " ".join(text.split()) for name, text in found.items()}


def _with_enums(function: Callable[..., Any], enums: dict[str, type[Enum]]) -> Callable[..., Any]:
    """The function with arguments of an Enum given by value, as JSON has them."""
    if not enums:
        return function

    def call(**arguments: Any) -> Any:
        return function(**{name: enums[name](x) if name in enums else x for name, x in arguments.items()})

    return call


def _text(value: Any) -> str:
    """A result as the model reads it: structures as JSON."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
