"""puna's verdicts on BFCL answers beside the published scorer's, on right answers and on answers made wrong.

    python benchmarks/bfcl.py DATA SCORER

DATA holds CATEGORY.jsonl[.gz] with `possible_answer`; SCORER is the folder above the package `bfcl_eval` (a checkout's
berkeley-function-call-leaderboard, or site-packages). Prints agreement by category, and each disagreement.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from puna.evals.bfcl import SINGLE_TURN, Case, load_cases, problem
from puna.text.message import ToolCall

Calls = list[ToolCall]


def literal(value: Any, kind: str, language: str, inner: str | None = None) -> Any:
    """A value as a model writes it in a language; as it is in Python."""
    if language == "python":
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        inside = ", ".join(f'"{one}"' if inner == "String" else literal(one, inner or "any", language) for one in value)
        forms = {"Array": f"new Object[]{{{inside}}}", "ArrayList": f"new ArrayList<>(Arrays.asList({inside}))"}
        return forms.get(kind, f"[{inside}]")
    if isinstance(value, dict):
        inside = {key: one[0] if isinstance(one, list) else one for key, one in value.items()}
        if language == "java":
            puts = " ".join(f"put({json.dumps(key)}, {json.dumps(one)});" for key, one in inside.items())
            return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
        return json.dumps(inside)
    suffix = {"float": "f" if language == "java" else "", "long": "L", "Bigint": "n"}.get(kind, "")
    return value if isinstance(value, str) else f"{value}{suffix}"


def right_calls(case: Case, random: random.Random) -> Calls:
    """One of the recorded answers."""
    calls = []
    for answer in case.answers:
        ((name, accepted),) = answer.items()
        function = next(f for f in case.functions if f["name"] == name)
        arguments = {}
        for argument, values in accepted.items():
            value = random.choice(values)
            if value == "" and (len(values) > 1 or argument not in function["parameters"]["required"]):
                continue
            schema = function["parameters"]["properties"].get(argument, {"type": "any"})
            inner = schema.get("items", {}).get("type")
            arguments[argument] = literal(plain(value, schema), schema["type"], case.language, inner)
        calls.append(ToolCall(name, arguments))
    return calls


def plain(value: Any, schema: dict[str, Any]) -> Any:
    """An accepted value as an argument: dictionaries hold lists of what is accepted for each key."""
    if isinstance(value, dict):
        return {key: one[0] for key, one in value.items() if isinstance(one, list) and one and one[0] != ""}
    if isinstance(value, list) and schema.get("items", {}).get("type") == "dict":
        return [plain(one, {}) for one in value]
    return value


def changed(value: Any, random: random.Random) -> Any:
    """The value made another, of the same type or of another."""
    if isinstance(value, str):
        return random.choice(
            [value.upper(), f" {value}. ", value + "x", value.replace(" ", "_"), 7, True, [value], "", f'"{value}"']
        )
    if isinstance(value, bool):
        return random.choice([not value, str(value), int(value), str(value).lower()])
    if isinstance(value, int | float):
        return random.choice(
            [value + 1, float(value), str(value), int(value), [value], value == 1, f"{value}L", -value]
        )
    if isinstance(value, list):
        others = [value[::-1], value[1:], [*value, *value[:1]], [str(x) for x in value], str(value), []]
        return random.choice([*others, [x.upper() if isinstance(x, str) else x for x in value], {"a": value}])
    if isinstance(value, dict):
        less = dict(list(value.items())[1:])
        more = value | {"extra": 1}
        other = {key: changed(one, random) for key, one in value.items()}
        return random.choice([less, more, other, [value], str(value), {}])
    return "other"


def wrong_calls(calls: Calls, random: random.Random) -> Calls:
    """The calls with one thing changed, which may leave them right."""
    calls = [ToolCall(call.name, dict(call.arguments)) for call in calls]
    call = random.choice(calls)
    names = list(call.arguments)
    match random.randrange(8):
        case 0:
            call.name = random.choice([call.name + "s", call.name.upper(), call.name.replace(".", "_"), call.name[1:]])
        case 1 if names:
            del call.arguments[random.choice(names)]
        case 2:
            call.arguments["unheard_of"] = 1
        case 3:
            random.shuffle(calls)
        case 4:
            calls.append(call) if random.random() < 0.5 else calls.pop()
        case _ if names:
            name = random.choice(names)
            call.arguments[name] = changed(call.arguments[name], random)
    return calls


def answers(case: Case, rounds: int) -> Iterator[Calls]:
    draw = random.Random(case.id)
    for _ in range(rounds):
        right = right_calls(case, draw)
        yield right
        for _ in range(3):
            yield wrong_calls(right, draw)


def published(folder: str) -> Any:
    """The published checker, without the clients of models that its configuration imports."""
    sys.path.insert(0, folder)
    configuration = ModuleType("bfcl_eval.constants.model_config")
    configuration.__dict__["MODEL_CONFIG_MAPPING"] = {"puna": SimpleNamespace(underscore_to_dot=False)}
    sys.modules["bfcl_eval.constants.model_config"] = configuration
    from bfcl_eval.constants.enums import Language  # pyright: ignore[reportMissingImports]
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker  # pyright: ignore[reportMissingImports]

    def check(case: Case, calls: Calls) -> bool | None:
        output = [{call.name: dict(call.arguments)} for call in calls]
        language = Language[case.language.upper()]
        try:
            return ast_checker(case.functions, output, case.answers, language, case.category, "puna")["valid"]
        except Exception:  # it stops at some answers; none of them is right
            return None

    return check


def main(data: Path, scorer: str, rounds: int = 3) -> int:
    check = published(scorer)
    total: Counter[str] = Counter()
    print("category                  answers  right  agree  published stops")
    for category in SINGLE_TURN:
        if category.endswith("relevance"):
            continue  # whether anything is called
        count: Counter[str] = Counter()
        for case in load_cases(data, category):
            for calls in answers(case, rounds):
                theirs = check(case, calls)
                ours = problem(case, calls)
                count["answers"] += 1
                count["right"] += ours is None
                count["stops"] += theirs is None
                count["agree"] += (ours is None) == bool(theirs)
                if (ours is None) != bool(theirs):
                    print(f"  {case.id}: published {theirs}, ours {ours}: {calls} {case.answers}"[:600])
        print(f"{category:25s} {count['answers']:7,} {count['right']:6,} {count['agree']:6,} {count['stops']:6,}")
        total += count
    print(f"{'total':25s} {total['answers']:7,} {total['right']:6,} {total['agree']:6,} {total['stops']:6,}")
    return total["answers"] - total["agree"]


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), sys.argv[2])))
