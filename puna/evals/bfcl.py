"""Scoring calls by the rules of the Berkeley Function-Calling Leaderboard (v4; Patil et al., ICML 2025).

A recorded answer lists for each argument the values that are right; "" among them means that it may be left out.
Strings are compared without case, spaces and some punctuation, types are exact but for integers where a float is due.
These are the published scorer's verdicts, its oddities included: benchmarks/bfcl.py compares the two on thousands of
answers.

What is not scored as published: multi-turn categories, which the leaderboard scores by running its own simulated
services. `turns_problem` compares the calls with the recorded ones, which is stricter.
"""

import ast
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.errors import PunaError
from puna.evals.bfcl_literals import JAVA, JAVASCRIPT, read_java, read_javascript
from puna.evals.score import proportion
from puna.infer.engine import Engine, Sampling
from puna.text.chat import Chat, Message, ToolCall, parse, render

PYTHON = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict}
PYTHON |= {"any": str}
NESTED = ("array", "tuple", "Array", "ArrayList")
"""Types whose elements are checked too."""
SINGLE_TURN = (
    *("simple_python", "simple_java", "simple_javascript", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance"),
)
MULTI_TURN = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")

_SCHEMA_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


@dataclass(frozen=True)
class Case:
    """One question: messages as the chat API has them, functions as BFCL writes them, and the recorded answers."""

    id: str
    category: str
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    answers: list[dict[str, dict[str, list[Any]]]]

    @property
    def language(self) -> str:
        return self.category.removeprefix("simple_") if self.category.endswith(("java", "javascript")) else "python"

    def schemas(self) -> list[dict[str, Any]]:
        """The functions in OpenAI's form; for Java and JavaScript each argument is text in that language."""
        return [{"type": "function", "function": _schema(one, self.language)} for one in self.functions]


def load_cases(folder: Path, category: str) -> list[Case]:
    """The questions of a single-turn category, from CATEGORY.jsonl or CATEGORY.jsonl.gz with `possible_answer`."""
    if category not in SINGLE_TURN:
        raise PunaError(f"category {category!r}: choose out of {', '.join(SINGLE_TURN)}")
    path = folder / f"{category}.jsonl.gz"
    path = path if path.is_file() else folder / f"{category}.jsonl"
    if not path.is_file():
        raise PunaError(f"no {category}.jsonl or {category}.jsonl.gz in {folder}; name the folder of BFCL's data")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.decode().splitlines() if line.strip()]
    return [
        Case(row["id"], category, row["question"][0], row["function"], row.get("possible_answer") or []) for row in rows
    ]


def problem(case: Case, calls: Sequence[ToolCall]) -> str | None:
    """What is wrong with an answer, or None if it is right."""
    if case.category.endswith("irrelevance"):
        return f"{calls[0].name} is called where no function fits" if calls else None
    if case.category.endswith("relevance"):
        return None if calls else "nothing is called"
    if len(calls) != len(case.answers):
        return f"{len(calls)} calls where {len(case.answers)} are right"
    if "parallel" in case.category:
        return _parallel_problem(case, calls)
    expected = next(iter(case.answers[0]))
    function = _function(case, expected) if "multiple" in case.category else case.functions[0]
    return _call_problem(function, calls[0], case.answers[0], case.language)


def turns_problem(turns: Sequence[Sequence[ToolCall]], recorded: Sequence[Sequence[str]]) -> str | None:
    """Whether each turn has the recorded calls, in order, among its own; a turn without recorded calls has none."""
    if len(turns) != len(recorded):
        return f"{len(turns)} turns where {len(recorded)} are recorded"
    for number, (calls, wanted) in enumerate(zip(turns, recorded), 1):
        if calls and not wanted:
            return f"turn {number}: {calls[0].name} is called where nothing is to be done"
        rest = iter((call.name, call.arguments) for call in calls)
        for text in wanted:
            if not any(_same_call(call, text) for call in rest):
                return f"turn {number}: {text} is missing"
    return None


def _same_call(call: tuple[str, dict[str, Any]], recorded: str) -> bool:
    node = ast.parse(recorded, mode="eval").body
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    # an argument recorded by position is one of the values
    named = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    placed = [ast.literal_eval(value) for value in node.args]
    name, arguments = call
    others = [value for key, value in arguments.items() if key not in named]
    return name == node.func.id and {k: arguments.get(k, ...) for k in named} == named and others == placed


def _parallel_problem(case: Case, calls: Sequence[ToolCall]) -> str | None:
    """Calls in any order: each recorded answer takes the first call left that fits."""
    left = list(calls)
    for answer in case.answers:
        name = next(iter(answer))
        function = _function(case, name)
        fits = [not _call_problem(function, call, answer, case.language) for call in left]
        if True not in fits:
            return f"no call fits the recorded one of {name}"
        del left[fits.index(True)]
    return None


def _function(case: Case, name: str) -> dict[str, Any]:
    return next(function for function in case.functions if function["name"] == name)


def _call_problem(
    function: dict[str, Any], call: ToolCall, answer: dict[str, dict[str, list[Any]]], language: str
) -> str | None:
    accepted = next(iter(answer.values()))
    properties = function["parameters"]["properties"]
    if call.name != function["name"]:
        return f"{call.name} is called for {function['name']}"
    for name in function["parameters"]["required"]:
        if name not in call.arguments:
            return f"{name} is missing"
    for name, value in call.arguments.items():
        if name not in properties or name not in accepted:
            return f"{name} does not belong"
        wrong = _value_problem(value, properties[name], accepted[name], language)
        if wrong:
            return f"{name}: {wrong}"
    left_out = [name for name, values in accepted.items() if name not in call.arguments and "" not in values]
    return f"{left_out[0]} is left out" if left_out else None


def _value_problem(value: Any, schema: dict[str, Any], accepted: list[Any], language: str) -> str | None:
    """What is wrong with an argument's type or value."""
    kind = schema["type"]
    inner = schema.get("items", {}).get("type") if kind in NESTED else None
    types: dict[str, type] = PYTHON
    if language != "python":
        if not isinstance(value, str):
            return f"{value!r} is no text in {language}"
        types, read = (JAVA, read_java) if language == "java" else (JAVASCRIPT, read_javascript)
        value = read(value, kind, inner)
    elif kind == "float" and type(value) is int:
        value = float(value)
    wanted = types[kind]
    element = types[inner] if inner is not None else None
    recorded = _type_of(accepted)
    # an answer of another type than the schema's is the name of a variable, which has to be that very name
    variable = recorded is not None and recorded is not wanted
    if type(value) is wanted:
        if element and not any(_elements_fit(value, one, element) for one in accepted):
            return f"elements of {value!r} are of a wrong type"
    elif recorded is not None and type(value) is recorded:
        variable = True
    else:
        return f"{value!r} is no {kind}"
    right = value in accepted if variable else _is_accepted(value, wanted, element, accepted)
    return None if right else f"{value!r} is none of {accepted}"


def _type_of(accepted: list[Any]) -> type | None:
    return next((type(one) for one in accepted if one != ""), None)


def _elements_fit(values: list[Any], accepted: Any, element: type) -> bool:
    return not isinstance(accepted, list) or all(type(value) in (element, _type_of(accepted)) for value in values)


def _is_accepted(value: Any, wanted: type, element: type | None, accepted: list[Any]) -> bool:
    if wanted is dict:
        return any(_same_dict(value, one) for one in accepted if one != "")
    if wanted is list and element is dict:
        return any(
            len(value) == len(one) and all(_same_dict(mine, right) for mine, right in zip(value, one))
            for one in accepted
        )
    if wanted is str:
        return _plain(value) in [_plain(one) for one in accepted if isinstance(one, str)]
    if wanted is list:
        return [_plain(x) for x in value] in [[_plain(x) for x in one] for one in accepted]
    return value in accepted


def _same_dict(value: dict[str, Any], accepted: dict[str, list[Any]]) -> bool:
    known = all(key in accepted and _plain(x) in [_plain(y) for y in accepted[key]] for key, x in value.items())
    return known and all(key in value or "" in values for key, values in accepted.items())


def _plain(value: Any) -> Any:
    """A string without what does not count: case, spaces, , . / - _ * ^ and the kind of quotes."""
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if isinstance(value, str) else value


def _schema(function: dict[str, Any], language: str) -> dict[str, Any]:
    parameters = _json_types(function["parameters"])
    if language != "python":
        name = {"java": "Java", "javascript": "JavaScript"}[language]
        for key, schema in function["parameters"]["properties"].items():
            told = f"{schema.get('description', '')} Written as {name} text of type {schema['type']}.".strip()
            parameters["properties"][key] = {"type": "string", "description": told}
    return {"name": function["name"], "description": function.get("description", ""), "parameters": parameters}


def _json_types(schema: Any) -> Any:
    """BFCL's names of types as JSON schema has them."""
    if isinstance(schema, list):
        return [_json_types(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _json_types(value) for key, value in schema.items()}
    if isinstance(schema.get("type"), str):
        copy["type"] = _SCHEMA_TYPES.get(schema["type"], schema["type"])
    return copy


def score(engine: Engine, cases: Sequence[Case], sampling: Sampling) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The share of right answers with its interval, and each reply with what is wrong with it.

    A question that does not fit into the model's window counts as answered wrongly.
    """
    replies: list[dict[str, Any]] = []
    prompts = [_prompt(case, engine) for case in cases]
    window = engine.model.config.max_seq_len - sampling.max_tokens
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= window]
    ids = dict(zip(fits, engine.generate([prompts[i] for i in fits], sampling)))
    for i, case in enumerate(cases):
        if i in ids:
            wrong = problem(case, parse(ids[i][0], engine.tokenizer).tool_calls)
            text = engine.tokenizer.decode(ids[i][0])
        else:
            wrong, text = f"the question has {len(prompts[i]):,} tokens, the model takes {window:,}", None
        replies.append({"id": case.id, "reply": text, "wrong": wrong})
    return proportion([reply["wrong"] is None for reply in replies]), replies


def _prompt(case: Case, engine: Engine) -> list[int]:
    messages = [Message.from_dict(message) for message in case.messages]
    begins = next((message.role for message in messages if message.role != "system"), None)
    chat = Chat(messages, tools=case.schemas(), tools_in_user_message=begins == "user")
    return render(chat, engine.tokenizer, generation_prompt=True).ids
