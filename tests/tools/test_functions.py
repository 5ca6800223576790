"""Tools: exact arithmetic that cannot be misused, schemas from functions, errors as text."""

import re
import warnings
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.errors import PunaError
from puna.text.message import ToolCall
from puna.tools import CALCULATOR, calculator, last_number, load_tools, make_tool, run_call


def expressions() -> st.SearchStrategy[str]:
    """Arithmetic with brackets, signs and spaces; every number an integer or a decimal."""
    numbers = st.integers(0, 10**9).map(str) | st.decimals(0, 1000, places=3).map(str)
    return st.recursive(
        numbers,
        lambda inner: (
            inner.map("({})".format)
            | inner.map(" -({})".format)
            | st.tuples(inner, st.sampled_from(["+", " - ", "*", " / "]), inner).map("".join)
        ),
        max_leaves=12,
    )


@given(expressions())
def test_the_calculator_is_exact(expression: str):
    as_fractions = re.sub(r"[\d.]+", lambda number: f"Fraction('{number[0]}')", expression)
    try:
        wanted = eval(as_fractions.strip(), {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            calculator(expression)
        return
    found = calculator(expression)
    if wanted.denominator == 1:
        assert found == str(wanted)
    else:
        assert float(found) == pytest.approx(float(wanted), rel=1e-9)
        assert len(found.lstrip("-").replace(".", "").partition("e")[0].strip("0")) <= 10


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("17 * 23", "391"),
        ("0.1 + 0.2", "0.3"),
        ("  2 - 5", "-3"),
        ("-3 * -(4 - 6)", "-6"),
        ("1 / 3", "0.3333333333"),
        ("6 / 3", "2"),
        ("1000000007 * 1000000009", "1000000016000000063"),
        ("1e3 + 1", "1001"),
    ],
)
def test_results_as_people_write_them(expression: str, result: str):
    assert calculator(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "", "x", "True", "1 if 1 else 2", "9 ** 9", "9 ** 9 ** 9", "1 << 999999", "7 // 2", "7 % 2", "1j", "'a' * 3",
        "[1] * 9", "(1, 2)", "abs(-1)", "__import__('os').system('true')", "(1).__class__", "1 == 1", "1; 2", "x := 1",
        "lambda: 1", "...", "1 +", "1e999", "2 / 0", "1 + " * 3000 + "1", "-" * 50_000 + "1",
        "9" * 20_000, " * ".join(["1e300"] * 100), "((((((((((" * 10_000,
    ],
    ids=lambda expression: expression[:12],
)  # fmt: skip
def test_what_is_no_small_arithmetic_is_an_error_told_as_text(expression: str):
    result = run_call(ToolCall("calculator", {"expression": expression}), [CALCULATOR])
    assert result.startswith("error: ")
    assert len(result) < 300


def test_a_number_run_into_a_word_is_no_warning_of_python_s():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="only numbers"):
            calculator("1and 2")


def test_a_long_expression_is_refused_before_it_is_parsed():
    assert calculator("(" * 90 + "1" + ")" * 90) == "1"
    with pytest.raises(ValueError, match="longer than 1,000 characters"):
        calculator("1" + " + 1" * 300)


def test_the_schema_of_a_function():
    def weather(city: str, days: int, wind: float, exact: bool = False, past: list[int] = [], more: dict = {}):  # noqa: B006
        """Say the weather.

        More for people.
        """

    assert make_tool(weather).schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Say the weather.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "wind": {"type": "number"},
                    "exact": {"type": "boolean"},
                    "past": {"type": "array", "items": {"type": "integer"}},
                    "more": {"type": "object"},
                },
                "required": ["city", "days", "wind"],
            },
        },
    }
    assert CALCULATOR.schema["function"]["parameters"]["required"] == ["expression"]


class Unit(Enum):
    CELSIUS = "C"
    KELVIN = "K"


def forecast(
    city: str,
    kind: Literal["rain", "wind"],
    unit: Unit = Unit.CELSIUS,
    hours: list[int] | None = None,
    level: int | str = 1,
    limits: dict[str, float] | None = None,
    tags: list[Literal["a", "b"]] = [],  # noqa: B006
    note: Any = None,
) -> dict[str, Any]:
    """Say the weather of
    some hours.

    It is made up.

    Args:
        city: Where;
            a name.
        kind (str): What: rain or wind.

    Returns:
        whatever: not an argument.
    """
    return {"city": city, "unit": unit, "hours": hours}


def test_the_schema_of_every_type():
    schema = make_tool(forecast).schema["function"]
    assert schema["description"] == "Say the weather of some hours."
    assert schema["parameters"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where; a name."},
            "kind": {"type": "string", "enum": ["rain", "wind"], "description": "What: rain or wind."},
            "unit": {"type": "string", "enum": ["C", "K"]},
            "hours": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
            "level": {"type": ["integer", "string"]},
            "limits": {"anyOf": [{"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}},
            "note": {},
        },
        "required": ["city", "kind"],
    }


def test_descriptions_in_the_style_of_sphinx():
    def area(width: float, height: float = 1):
        """An area.

        :param width: in metres,
            from left to right
        :param float height: in metres
        :returns: a number
        """

    properties = make_tool(area).schema["function"]["parameters"]["properties"]
    assert properties["width"] == {"type": "number", "description": "in metres, from left to right"}
    assert properties["height"]["description"] == "in metres"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"unit": "K", "hours": [1, 2]}, '{"city": "Lima", "unit": "Unit.KELVIN", "hours": [1, 2]}'),
        ({"hours": None, "limits": {"low": 1}, "level": "x", "note": [None], "tags": ["b"]}, '"hours": null}'),
        ({"unit": "F"}, 'error: unit="F": must be one of ["C", "K"]'),
        ({"kind": "snow"}, 'error: kind="snow": must be one of ["rain", "wind"]'),
        ({"kind": ["rain"]}, 'error: kind=["rain"]: must be one of ["rain", "wind"]'),
        ({"hours": [1, "2"]}, 'error: hours=[1, "2"]: must be of type integer or must be of type null'),
        ({"hours": [True]}, "error: hours=[true]: must be of type integer or must be of type null"),
        ({"level": 1.5}, "error: level=1.5: must be of type integer or string"),
        ({"limits": {"low": "x"}}, 'error: limits={"low": "x"}: must be of type number or must be of type null'),
        ({"city": None}, "error: city=null: must be of type string"),
        ({"tags": ["c"]}, 'error: tags=["c"]: must be one of ["a", "b"]'),
    ],
)
def test_arguments_are_checked_and_results_are_json(arguments: dict[str, Any], told: str):
    call = ToolCall("forecast", {"city": "Lima", "kind": "rain", **arguments})
    result = run_call(call, [make_tool(forecast)])
    assert result == told or (not told.startswith("error") and result.endswith(told))


def test_functions_that_are_no_tools():
    def untyped(city):
        """Say."""

    def odd(city: Path):
        """Say."""

    def silent(city: str): ...

    def many(*cities: str):
        """Say."""

    def pathed(city: list[Path]):
        """Say."""

    def keyed(city: dict[int, str]):
        """Say."""

    def mixed(city: Literal["a", None]):
        """Say."""

    wrong = [(untyped, "give city a type hint"), (silent, "no docstring"), (many, "cannot be given by name")]
    for function, message in [*wrong, *((f, "give city a type") for f in (odd, pathed, keyed, mixed))]:
        with pytest.raises(PunaError, match=f"tool {function.__name__}.*{message}"):
            make_tool(function)


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculator", {"expression": "2 + 3"}, "5"),
        ("calculator", {}, "error: calculator() missing 1 required positional argument: 'expression'"),
        ("calculator", {"expression": "1", "why": 2}, "error: calculator() got an unexpected keyword argument 'why'"),
        ("calculator", {"expression": "x + 1"}, "error: cannot work out 'x': only numbers, + - * / and brackets"),
        ("browser", {"url": "x"}, "error: there is no tool 'browser'; there are: calculator"),
    ],
)
def test_a_call_always_has_a_result(name: str, arguments: dict[str, Any], result: str):
    assert run_call(ToolCall(name, arguments), [CALCULATOR]) == result


def test_an_argument_of_another_type_is_an_error_as_text():
    for value in (5, None, ["1"], {"a": 1}):
        assert run_call(ToolCall("calculator", {"expression": value}), [CALCULATOR]).startswith("error: ")


def test_tools_of_a_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from math import sqrt\nfrom textwrap import dedent\n"
        'def double(n: int) -> int:\n    "Twice a number."\n    return 2 * n\n'
        "def _hidden(n):\n    return n\n"
    )
    (tool,) = load_tools(path)
    assert run_call(ToolCall("double", {"n": 4}), [tool]) == "8"
    with pytest.raises(PunaError, match="no Python file at"):
        load_tools(tmp_path / "none.py")


@pytest.mark.parametrize(
    ("text", "number"),
    [("12 * 3 = 36", "36"), ("5 - 9 = -4", "-4"), ("It is 2.5.", "2.5"), ("none", None), ("", None), ("7, or 8!", "8")],
)
def test_last_number(text: str, number: str | None):
    assert last_number(text) == number
