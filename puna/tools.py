"""Tools that a model may call: a schema that it reads and a Python function that runs.

A tool is made from a plain function: its name, docstring and type hints become the JSON schema. The calculator is the
one that comes with puna; `puna chat --tools FILE.py` brings the user's own.
"""

import ast
import importlib.util
import inspect
import operator
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.text.message import ToolCall

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


@dataclass(frozen=True)
class Tool:
    """A function and its schema in OpenAI's form."""

    function: Callable[..., Any]
    schema: dict[str, Any]

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]


def make_tool(function: Callable[..., Any]) -> Tool:
    """The tool of a function with type hints and a docstring, whose first line describes it to the model."""
    hints = typing.get_type_hints(function)
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = typing.get_origin(hints.get(name)) or hints.get(name)
        if kind not in JSON_TYPES:
            raise PunaError(
                f"tool {function.__name__}: give {name} a type hint out of str, int, float, bool, list, dict"
            )
        properties[name] = {"type": JSON_TYPES[kind]}
        if parameter.default is parameter.empty:
            required.append(name)
    description = (inspect.getdoc(function) or "").partition("\n")[0]
    if not description:
        raise PunaError(f"tool {function.__name__} has no docstring; its first line tells the model what it does")
    parameters = {"type": "object", "properties": properties, "required": required}
    schema = {"name": function.__name__, "description": description, "parameters": parameters}
    return Tool(function, {"type": "function", "function": schema})


def run_call(call: ToolCall, tools: Sequence[Tool]) -> str:
    """The result of a call as text; what goes wrong is told to the model in the result."""
    for tool in tools:
        if tool.name == call.name:
            try:
                return str(tool.function(**call.arguments))
            except Exception as error:  # whatever a tool raises is the model's to know
                return f"error: {error}"
    return f"error: there is no tool {call.name!r}"


def load_tools(path: Path) -> list[Tool]:
    """The tools of a Python file: its public functions. The file is run; only name one that you trust."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise PunaError(f"no Python file at {path}; tools are the public functions of a .py file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = inspect.getmembers(module, lambda x: inspect.isfunction(x) and x.__module__ == module.__name__)
    return [make_tool(function) for name, function in functions if not name.startswith("_")]


def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    if len(expression) > 1000:  # deep nesting can crash Python's parser
        raise ValueError("the expression is longer than 1,000 characters")
    return _number(_evaluate(ast.parse(expression.strip(), mode="eval").body))


CALCULATOR = make_tool(calculator)

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def _evaluate(node: ast.expr) -> Fraction:
    """The value of + - * / and brackets over numbers, exactly; nothing else is understood."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return Fraction(str(node.value))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    raise ValueError(f"cannot work out {ast.unparse(node)!r}: only numbers, + - * / and brackets")


def last_number(text: str) -> str | None:
    """The last number in a text, as it is written there."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    return numbers[-1] if numbers else None


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"
