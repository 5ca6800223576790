"""Dialogues that call functions of the corpus: single, nested, parallel, multi-step, not needed, unavailable (4.3.5).

Rules make them, without a model: the question says what the function is described to do and names every value of the
call literally, so that the right call can be told from the question and the schemas alone. No function is run. What a
call gives is drawn by the type that the function is said to return. Every call is checked against its schema, and no
question comes twice. A model may put the questions into words of its own, if all values stay in them.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from puna.endpoint import Asker, GiveUpError, ask_in_order
from puna.posttrain.synthesis.found import Drop, DropError, Line
from puna.posttrain.synthesis.signatures import Function
from puna.text.message import Message, ToolCall
from puna.tools.functions import check_arguments
from puna.train.batches import rng

KINDS = ("single", "nested", "parallel", "multi-step", "not-needed", "unavailable")
SOURCE = "functions"
OTHERS = 4
"""Functions beside those that are needed, at most, among which the model has to choose."""
SINGLE = (
    "{Purpose}. {Values}.",
    "{Values}. {Purpose}.",
    "I need this done: {purpose}. {Values}.",
    "Please do this for me: {purpose}, with {values}.",
)
PARALLEL = ("Do these at once.\n{list}", "I need all of these, in any order.\n{list}", "Please do all of this:\n{list}")
STEPS = (
    "Do these one after the other.\n{list}",
    "Step by step, please, and wait for each result.\n{list}",
    "In this order, one at a time:\n{list}",
)
NESTED = (
    "{first}\nThen take the result as {argument} and do this: {purpose}{rest}.",
    "{Purpose}{rest}. The {argument} is what you get from this: {first}",
)
ABOUT = (
    ("Which arguments does {name} need?", "{needs}"),
    ("What is {name} for?", "{description}"),
    ("Do not call anything yet: what must I tell you for {name}?", "{needs}"),
    ("What kind of value is {argument} of {name}?", "{kind}"),
)
MISSING = ("None of my tools can do that.", "I have no tool for that.", "No tool that I have does this.")
PHRASING = (
    "You rewrite requests so that they sound like a person's. Keep what is asked for, and keep every name and value "
    "exactly as it is written. Reply with the request and nothing else."
)
Random = np.random.Generator


class Step(NamedTuple):
    """The calls of one message and what they give."""

    calls: list[ToolCall]
    results: list[str]


class Problem(NamedTuple):
    kind: str
    question: str
    steps: list[Step]
    answer: str
    needed: list[Function]
    """The functions that have to be among the tools."""
    absent: Sequence[Function] = ()
    """Those that must not be."""


def dialogues(
    functions: Sequence[Function], count: int, seed: int, asker: Asker | None = None
) -> tuple[list[Line], list[Drop]]:
    """`count` dialogues of the kinds in turn, or as many as there are different ones; and what was dropped.

    With an `asker` its model rewords the questions.
    """
    random = rng(seed, "functions")
    made: dict[str, Line] = {}
    drops = []
    turn = tries = 0
    while functions and len(made) < count and tries < 20 * count:
        tries += 1
        try:
            problem = MAKE[KINDS[turn % len(KINDS)]](random, functions)
            verify(problem)
            if problem.question in made:
                raise DropError("duplicate", problem.question[:80])
            made[problem.question] = _line(problem, _tools(problem, functions, random))
            turn += 1
        except DropError as drop:
            turn += tries % 20 == 0  # there may be none of this kind
            if drop.reason != "fit":
                drops.append(Drop(SOURCE, f"{KINDS[turn % len(KINDS)]} {tries}", drop.reason, drop.detail))
    if asker:
        drops += _reword(made, asker)
    return list(made.values()), drops


def verify(problem: Problem) -> None:
    """DropError where a call does not fit its schema."""
    schemas = {function.name: function.schema["function"]["parameters"] for function in problem.needed}
    for call in (call for step in problem.steps for call in step.calls):
        if wrong := mismatch(call, schemas):
            raise DropError("schema", wrong)


def mismatch(call: ToolCall, schemas: dict[str, dict[str, Any]]) -> str | None:
    """What of a call its function's schema of parameters does not allow."""
    if call.name not in schemas:
        return f"there is no function {call.name}"
    schema = schemas[call.name]
    if missing := set(schema.get("required", [])) - set(call.arguments):
        return f"{call.name}: {', '.join(sorted(missing))} is missing"
    if unknown := set(call.arguments) - set(schema.get("properties", {})):
        return f"{call.name}: there is no argument {', '.join(sorted(unknown))}"
    try:
        check_arguments(call.arguments, schema)
    except ValueError as error:
        return f"{call.name}: {error}"
    return None


# -- problems ----------------------------------------------------------------------------------------------------------


def _single(random: Random, functions: Sequence[Function]) -> Problem:
    function = _pick(random, functions)
    call = _call(random, function)
    result = _result(random, function)
    return Problem("single", _ask(random, function, call), [Step([call], [result])], _told([result]), [function])


def _nested(random: Random, functions: Sequence[Function]) -> Problem:
    outer = _pick(random, functions)
    inner = _pick(random, functions)
    fitting = [name for name in outer.required if _fits(inner, outer.properties[name])]
    if not fitting or inner.name == outer.name:
        raise DropError("fit", f"{outer.name} takes nothing that {inner.name} gives")
    argument = str(random.choice(fitting))
    first, second = _call(random, inner), _call(random, outer)
    value = draw(random, inner.gives or {}, words_of(inner))
    second.arguments[argument] = value
    rest = {name: given for name, given in second.arguments.items() if name != argument}
    question = str(random.choice(NESTED)).format(
        first=_ask(random, inner, first),
        argument=argument,
        purpose=_lower(outer.purpose),
        Purpose=outer.purpose,
        rest=f", with {_values(rest)}" if rest else "",
    )
    end = _result(random, outer)
    steps = [Step([first], [_shown(value)]), Step([second], [end])]
    return Problem("nested", question, steps, _told([end]), [inner, outer])


def _fits(inner: Function, argument: dict[str, Any]) -> bool:
    """Whether what a function gives may be an argument of this schema: of its type, or where that takes anything."""
    if inner.gives is None or not argument:
        return inner.gives is not None
    return (
        inner.gives == argument and argument.get("type") in ("integer", "number", "string") and "enum" not in argument
    )


def _parallel(random: Random, functions: Sequence[Function]) -> Problem:
    chosen = [_pick(random, functions) for _ in range(int(random.integers(2, 4)))]
    calls = [_call(random, function) for function in chosen]
    if len({(call.name, json.dumps(call.arguments)) for call in calls}) < len(calls):
        raise DropError("duplicate", "the same call twice in a message")
    results = [_result(random, function) for function in chosen]
    question = str(random.choice(PARALLEL)).format(list=_list(random, chosen, calls))
    return Problem("parallel", question, [Step(calls, results)], _told(results), _unique(chosen))


def _steps(random: Random, functions: Sequence[Function]) -> Problem:
    chosen = [_pick(random, functions) for _ in range(int(random.integers(2, 4)))]
    calls = [_call(random, function) for function in chosen]
    results = [_result(random, function) for function in chosen]
    question = str(random.choice(STEPS)).format(list=_list(random, chosen, calls))
    steps = [Step([call], [result]) for call, result in zip(calls, results)]
    return Problem("multi-step", question, steps, _told(results), _unique(chosen))


def _not_needed(random: Random, functions: Sequence[Function]) -> Problem:
    function = _pick(random, functions)
    question, answer = ABOUT[int(random.integers(len(ABOUT)))]
    argument = str(random.choice(list(function.properties))) if function.properties else ""
    if "{argument}" in question and not argument:
        raise DropError("fit", f"{function.name} has no arguments")
    needs = [f"{name} ({_kind(function.properties[name])})" for name in function.required]
    words = {
        "name": function.name,
        "needs": f"It needs {' and '.join(needs)}." if needs else "It needs no arguments.",
        "description": function.schema["function"]["description"],
        "argument": argument,
        "kind": f"It is of type {_kind(function.properties[argument])}." if argument else "",
    }
    return Problem("not-needed", question.format(**words), [], answer.format(**words), [function])


def _unavailable(random: Random, functions: Sequence[Function]) -> Problem:
    function = _pick(random, functions)
    question = _ask(random, function, _call(random, function))
    return Problem("unavailable", question, [], str(random.choice(MISSING)), [], [function])


MAKE: dict[str, Callable[[Random, Sequence[Function]], Problem]] = {
    "single": _single,
    "nested": _nested,
    "parallel": _parallel,
    "multi-step": _steps,
    "not-needed": _not_needed,
    "unavailable": _unavailable,
}


# -- values ------------------------------------------------------------------------------------------------------------


def draw(random: Random, schema: dict[str, Any], words: Sequence[str]) -> Any:
    """A value that a schema of `make_tool`'s allows; texts are of the words, anything is a number or a text."""
    for choice in schema.get("anyOf", []):
        if choice.get("type") != "null":
            return draw(random, choice, words)
    if "enum" in schema:
        return schema["enum"][int(random.integers(len(schema["enum"])))]
    kind = schema.get("type") or ("integer", "string")[int(random.integers(2))]
    kind = next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
    if kind == "integer":
        return int(random.integers(1, 1000 if random.random() < 0.3 else 100))
    if kind == "number":
        return round(float(random.random()) * 100, int(random.integers(1, 3)))
    if kind == "boolean":
        return bool(random.integers(2))
    if kind == "array":
        return [draw(random, schema.get("items", {}), words) for _ in range(int(random.integers(2, 4)))]
    if kind == "object":
        return {_word(random, words): draw(random, schema.get("additionalProperties", {}), words)}
    return None if kind == "null" else " ".join(_word(random, words) for _ in range(int(random.integers(1, 3))))


def words_of(function: Function) -> list[str]:
    """Words to make texts of: those of the function's description."""
    told = re.findall(r"[a-z]{3,12}", function.schema["function"]["description"].lower())
    return sorted({*told, "llama", "puna", "lima", "cusco"})


def _word(random: Random, words: Sequence[str]) -> str:
    return words[int(random.integers(len(words)))]


def _call(random: Random, function: Function) -> ToolCall:
    """A call with every argument that is needed and some that are not."""
    names = [name for name in function.properties if name in function.required or random.random() < 0.4]
    return ToolCall(function.name, {n: draw(random, function.properties[n], words_of(function)) for n in names})


def _result(random: Random, function: Function) -> str:
    return "ok" if function.gives is None else _shown(draw(random, function.gives, words_of(function)))


# -- words -------------------------------------------------------------------------------------------------------------


def _ask(random: Random, function: Function, call: ToolCall) -> str:
    values = _values(call.arguments)
    if not values:
        return f"{function.purpose}."
    words = {"purpose": _lower(function.purpose), "Purpose": function.purpose, "values": values}
    return str(random.choice(SINGLE)).format(**words, Values=f"Use {values}")


def _values(arguments: dict[str, Any]) -> str:
    """Every argument by name, its value as JSON."""
    parts = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items()]
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1] if parts else ""


def _list(random: Random, functions: Sequence[Function], calls: Sequence[ToolCall]) -> str:
    return "\n".join(f"{n}. {_ask(random, *pair)}" for n, pair in enumerate(zip(functions, calls), 1))


def _told(results: Sequence[str]) -> str:
    return f"The result is {results[0]}." if len(results) == 1 else f"The results are {' and '.join(results)}."


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return f"one of {', '.join(map(_shown, schema['enum']))}"
    kinds = [_kind(choice) for choice in schema["anyOf"]] if "anyOf" in schema else schema.get("type", "any type")
    return " or ".join(kinds) if isinstance(kinds, list) else kinds


def _lower(text: str) -> str:
    """With a small first letter, if the first word is an ordinary one."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _pick(random: Random, functions: Sequence[Function]) -> Function:
    return functions[int(random.integers(len(functions)))]


def _unique(functions: Sequence[Function]) -> list[Function]:
    return list({function.name: function for function in functions}.values())


# -- chats -------------------------------------------------------------------------------------------------------------


def _tools(problem: Problem, functions: Sequence[Function], random: Random) -> list[dict[str, Any]]:
    """The functions that are needed among others, in any order; none that does what an absent one does."""
    chosen = {function.name: function for function in problem.needed}
    kept_out = {function.name for function in problem.absent} | {function.purpose for function in problem.absent}
    for _ in range(OTHERS):
        other = _pick(random, functions)
        if not kept_out & {other.name, other.purpose}:
            chosen.setdefault(other.name, other)
    if not chosen:
        raise DropError("fit", "no other function is at hand")
    return [list(chosen.values())[i].schema for i in random.permutation(len(chosen))]


def messages(problem: Problem) -> Iterator[Message]:
    yield Message("user", problem.question)
    for step in problem.steps:
        yield Message("assistant", tool_calls=step.calls)
        yield from (Message("tool", result) for result in step.results)
    yield Message("assistant", problem.answer)


def _line(problem: Problem, tools: list[dict[str, Any]]) -> Line:
    told = [message.to_dict() for message in messages(problem)]
    return {"source": SOURCE, "kind": problem.kind, "messages": told, "tools": tools}


def _reword(made: dict[str, Line], asker: Asker) -> list[Drop]:
    """Let the model reword the questions of calls; one that loses a value keeps the rule's words."""

    def work(question: str) -> str:
        needed = values_in(question, made[question])

        def read(text: str) -> str | None:
            whole = all(value in text or value.strip('"') in text for value in needed)
            return text.strip() if text.strip() and whole and len(text) <= 3 * len(question) + 100 else None

        again = f"Write it again, with each of these exactly as it is here: {', '.join(needed)}"
        told = [{"role": "system", "content": PHRASING}, {"role": "user", "content": question}]
        return asker.ask(question, told, read, again)[0]

    drops = []
    questions = [question for question, line in made.items() if len(line["messages"]) > 2]
    with closing(ask_in_order(questions, work, asker.endpoint.concurrency, asker.stop)) as results:
        for question, said in results:
            if isinstance(said, GiveUpError):
                drops.append(Drop(SOURCE, question[:80], "unphrased", str(said)[:120]))
            else:
                made[question]["messages"][0]["content"] = said
    return drops


def values_in(question: str, line: Line) -> list[str]:
    """The values of a chat's calls that its question names, as they stand there."""
    calls = [call["function"] for message in line["messages"] for call in message.get("tool_calls", [])]
    values = {json.dumps(value, ensure_ascii=False) for call in calls for value in call["arguments"].values()}
    return [value for value in sorted(values) if value in question]
