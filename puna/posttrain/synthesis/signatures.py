"""Function definitions in the corpus, read as tools (section 4.3.5: calls are grounded in real functions).

Two forms are found in any document: Python's `def` with type hints and a docstring, and a documented signature, a line
`name(argument, other=1) -> type` with a sentence below that begins with what the function does. Nothing of the
corpus is run: of a definition only names, known types and the presence of defaults go into a stub, from which
`make_tool` makes the schema.
"""

import ast
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

from puna.errors import PunaError
from puna.posttrain.synthesis.found import Drop, DropError
from puna.text.expression import parse_expression
from puna.tools import make_tool

Definition = ast.FunctionDef | ast.AsyncFunctionDef
TYPES: dict[str, Any] = {
    **{"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "Any": Any},
    **{"List": list, "Sequence": list, "Iterable": list, "Dict": dict, "Mapping": dict},
    **{"Literal": Literal, "Optional": Optional, "Union": Union},
}
"""The annotations that become JSON schema, by the last part of their name."""
LONGEST = 300
"""Characters of a description."""
MOST_ARGUMENTS = 8
_DEFINITION = re.compile(r"^([ \t]*)(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(", re.MULTILINE)
_DOCUMENTED = re.compile(
    r"^[ \t>*-]*((?:\w+\.)*\w+)(\([^()\n]*\))[ \t]*(?:(?:->|→)[ \t]*([^\n¶#]+?))?[ \t]*[¶#]?[ \t]*$"
)
_IMPERATIVE = re.compile(
    r"(?!(?:An?|And|Added|Al[ls]o?|Any|As|At|But|By|Changed|Deprecated|Each|Every|For|Here|How|If|In|Its?|Like|New|No|Not"
    r"|Notes?|Now|On|One|Or|Parameters|Same|See|Since|So|Some|The[nrsey]*|Th[aoi][ts]e?|To|Type|Us\w+|Warning|We|Wh\w+"
    r"|With|Your?|Examples?|Traceback)\b)[A-Z][a-z]+ \w"
)
"""The beginning of a sentence, but for words that begin one which says something else than what a function does."""


@dataclass(frozen=True)
class Function:
    """A function that the corpus defines or describes."""

    schema: dict[str, Any]
    """In OpenAI's form."""
    returns: dict[str, Any] | None
    """JSON schema of what it gives, if its definition tells."""
    document: str

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]

    @property
    def properties(self) -> dict[str, Any]:
        return self.schema["function"]["parameters"]["properties"]

    @property
    def required(self) -> list[str]:
        return self.schema["function"]["parameters"]["required"]

    @property
    def gives(self) -> dict[str, Any] | None:
        """JSON schema of what it gives, {} for anything; None where it is not said to give something."""
        if self.returns is not None or not self.purpose.startswith("Return"):
            return self.returns
        return {"type": "boolean"} if re.match(r"Returns? (?:True|False)\b", self.purpose) else {}

    @property
    def purpose(self) -> str:
        """The description's first sentence, without its full stop."""
        return re.split(r"(?<=[.!?])\s", self.schema["function"]["description"])[0].rstrip(" .!:")


def find_functions(documents: Iterable[tuple[str, str]]) -> tuple[list[Function], list[Drop]]:
    """The functions of (name, text) documents, each name once, in order; and what was no usable definition."""
    found: dict[str, Function] = {}
    drops = []
    for name, text in documents:
        for definition in definitions(text):
            what = f"{definition.name} in {name}"
            try:
                function = to_function(definition, name)
                if (before := found.setdefault(function.name, function)) is not function:
                    raise DropError("duplicate", f"as in {before.document}")
            except DropError as drop:
                drops.append(Drop("signatures", what, drop.reason, drop.detail))
    return list(found.values()), drops


def definitions(text: str) -> Iterator[Definition]:
    """Definitions and documented signatures that are Python's syntax. Those inside of classes or functions are told by
    their `self` alone, as excerpts often lack what stands around them."""
    for match in _DEFINITION.finditer(text):
        node = _parse(block(text[match.start() :], len(match[1].expandtabs())))
        if node is not None:
            yield node
    if "(" in text:
        yield from _documented(text)


def block(text: str, indent: int) -> str:
    """The definition at the beginning of a text: all lines that are indented deeper, the signature's included."""
    lines = text.expandtabs().split("\n")
    depth, end = 0, 0
    for end, line in enumerate(lines):
        if depth <= 0 and end and line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        depth += line.count("(") + line.count("[") - line.count(")") - line.count("]") if end < 30 else 0
    else:
        end = len(lines)
    return textwrap.dedent("\n".join(lines[:end]))


def _documented(text: str) -> Iterator[Definition]:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = _DOCUMENTED.match(line)
        below = next((one.strip() for one in lines[number + 1 : number + 4] if one.strip()), "") if match else ""
        if not match or not _IMPERATIVE.match(below) or "." not in below:
            continue
        returns = f" -> {match[3]}" if match[3] else ""
        place, _, name = match[1].rpartition(".")
        node = _parse(f"def {name}{match[2]}{returns}:\n    {below!r}\n")
        if node is not None and not place.rpartition(".")[2][:1].isupper():  # else a method of a class
            for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
                argument.annotation = argument.annotation or _default_type(_defaults(node.args).get(argument.arg))
            yield node


def _parse(source: str) -> Definition | None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    node = tree.body[0] if tree.body else None
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None


def to_function(node: Definition, document: str) -> Function:
    """A definition as a tool; DropError says why it is none."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if node.name.startswith(("_", "test")) or node.name == "main":
        raise DropError("private", node.name)
    if arguments and arguments[0].arg in ("self", "cls"):
        raise DropError("method", node.name)
    if node.args.vararg or len(arguments) > MOST_ARGUMENTS:
        raise DropError("arguments", "any number of them" if node.args.vararg else f"{len(arguments)} of them")
    docstring = ast.get_docstring(node) or ""
    summary = " ".join(docstring.partition("\n\n")[0].split())
    short = summary if len(summary) <= LONGEST else re.split(r"(?<=[.!?])\s", summary)[0]
    if len(short.split()) < 3 or len(short) > LONGEST:
        raise DropError("description", short[:80] or "no docstring")
    docstring = "\n\n".join([short, docstring.partition("\n\n")[2]])
    hints = {each.arg: each.annotation for each in arguments}
    schema = _schema(node.name, docstring, hints, set(_defaults(node.args)))
    try:
        returns = _schema("result", "what it gives", {"value": node.returns}, set()) if node.returns else None
    except DropError:
        returns = None
    returned = returns["function"]["parameters"]["properties"]["value"] if returns else None
    return Function(schema, returned, document)


def _defaults(arguments: ast.arguments) -> dict[str, ast.expr]:
    """Argument -> default, of those that have one."""
    plain = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(plain), reversed(arguments.defaults)), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    return {argument.arg: default for argument, default in pairs if default is not None}


def _default_type(default: ast.expr | None) -> ast.expr:
    """The type of a documented default, any type where there is none: a documentation tells types in its prose."""
    if isinstance(default, ast.UnaryOp):
        default = default.operand
    value = default.value if isinstance(default, ast.Constant) else None
    return ast.Name(type(value).__name__ if isinstance(value, bool | int | float | str) else "Any", ast.Load())


def _schema(name: str, docstring: str, hints: dict[str, ast.expr | None], optional: set[str]) -> dict[str, Any]:
    """The JSON schema of a stub with these arguments, made by the one function that makes tools."""
    for argument, hint in hints.items():
        if hint is None:
            raise DropError("untyped", argument)
    order = sorted(hints, key=lambda argument: argument in optional)
    arguments = (
        f"{each}: {ast.unparse(_safe(hint))}{' = None' * (each in optional)}" for each in order if (hint := hints[each])
    )
    stub = f"def {name}({', '.join(arguments)}):\n    {docstring!r}\n"
    space: dict[str, Any] = {}
    try:  # names out of TYPES, constants and brackets: nothing that could do anything
        exec(stub, {"__builtins__": {}, **TYPES}, space)
        return make_tool(space[name]).schema
    except (PunaError, TypeError, ValueError, SyntaxError) as error:
        raise DropError("type", str(error)[:120]) from None


def _safe(hint: ast.expr) -> ast.expr:
    """An annotation of known types alone; DropError names what is not."""
    match hint:
        case ast.Constant(value=str(text)):
            try:
                return _safe(parse_expression(text.strip()))
            except SyntaxError:
                raise DropError("type", text[:80]) from None
        case ast.Constant(value=None):
            return ast.Constant(None)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in TYPES:
            return ast.Name(name, ast.Load())
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            sides = ast.Tuple([_safe(left), _safe(right)], ast.Load())
            return ast.Subscript(ast.Name("Union", ast.Load()), sides, ast.Load())
        case ast.Subscript(value=outer, slice=inner):
            literal = isinstance(outer, ast.Name | ast.Attribute) and ast.unparse(outer).endswith("Literal")
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if literal and not all(isinstance(part, ast.Constant) for part in parts):
                raise DropError("type", ast.unparse(hint)[:80])
            safe = parts if literal else [_safe(part) for part in parts]
            return ast.Subscript(_safe(outer), safe[0] if len(safe) == 1 else ast.Tuple(safe, ast.Load()), ast.Load())
    raise DropError("type", ast.unparse(hint)[:80])
