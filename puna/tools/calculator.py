"""The calculator: exact arithmetic that cannot be misused."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from puna.text.expression import parse_expression
from puna.tools.functions import make_tool


def calculator(expression: str) -> str:
    """Work out an arithmetic expression."""
    if len(expression) > 1000:  # deep nesting can crash Python's parser
        raise ValueError("the expression is longer than 1,000 characters")
    return _number(_evaluate(parse_expression(expression.strip())))


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
