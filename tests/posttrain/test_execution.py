"""Execution feedback against a server that answers in OpenAI's form: right, wrong, mended, malformed, late, busy."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.log import Log
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.synthesis import checks
from puna.posttrain.synthesis.checks import failing, is_vacuous, linter, run, static_problem
from puna.posttrain.synthesis.execution import PROBLEM, SOLUTION, TESTS
from puna.posttrain.synthesis.replies import code_blocks, grades, one_program, pairs
from puna.posttrain.synthesis.snippets import choose, find_snippets
from puna.posttrain.synthesize import run as synthesize
from puna.recipe import Recipe
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from tests.openai_server import Reply, Server, answering, completion

RIGHT = "def twice(x):\n    # any number\n    return 2 * x\n"
WRONG = "def twice(x):\n    return 3 * x\n"
UNDEFINED = "def twice(x):\n    return factor * x\n"
BROKEN = "def twice(x:\n    return 2 * x\n"
ENDLESS = "def twice(x):\n    while True:\n        pass\n"
CHECKS = "def test_twice():\n    assert twice(2) == 4\n    assert twice(-1) == -2\n"
VACUOUS = "def test_twice():\n    twice(2)\n"
PROBLEM_TEXT = "Write a function twice(x) that takes a number and returns it multiplied by two. Case: {case}."


def fenced(code: str) -> str:
    return f"Here it is.\n\n```python\n{code}```\n"


def writer(first: dict[str, str], mended: dict[str, str], tests: dict[str, str] | None = None) -> Callable[..., Reply]:
    """A model that writes by the case that the snippet is of."""

    def reply(request: dict[str, Any]) -> Reply:
        system, *rest = request["messages"]
        text = rest[0]["content"]
        case = next(name for name in first if f"case_{name}" in text or f"Case: {name}." in text)
        if system["content"] == PROBLEM:
            return completion(PROBLEM_TEXT.format(case=case))
        if system["content"] == TESTS:
            return completion(fenced((tests or {}).get(case, CHECKS)))
        assert system["content"] == SOLUTION
        return completion(fenced(mended.get(case, first[case]) if len(rest) > 1 else first[case]))

    return reply


def code_of(*cases: str) -> str:
    return "\n\n".join(
        f"```python\ndef case_{case}(number):\n    return number * 2 + len('{case * 20}')\n```" for case in cases
    )


@pytest.fixture
def make(tmp_path: Path, make_recipe: Callable[..., Recipe], log: Log) -> Callable[..., Any]:
    """Run the stage over a corpus with a snippet of each case: lines, drops by case, figures."""

    def run_stage(server: Server, text: str, **knobs: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Any]:
        corpus, out = tmp_path / "corpus", tmp_path / "out"
        (corpus / "documents").mkdir(parents=True, exist_ok=True)
        out.mkdir(exist_ok=True)
        table = pa.Table.from_pylist([{"id": "d1", "title": "t", "language": "en", "text": text}])
        pq.write_table(table, corpus / "documents" / "code.parquet")
        pq.write_table(table, corpus / "held_out.parquet")
        few = {"tool_chats": 0, "plain_chats": 1, "question_chats": 0, "preference_problems": 0}
        endpoint = {"url": server.url, "model": "m", "tries": 3, "concurrency": 3, "timeout": 20.0} | knobs.pop(
            "endpoint", {}
        )
        recipe = make_recipe(synthesize=few | {"endpoint": endpoint} | knobs)
        metrics = synthesize(recipe, {"corpus": corpus}, out, log)
        lines = [line for line in read_jsonl(out / "sft.jsonl") if "source" in line]
        return lines, list(read_jsonl(out / "dropped.jsonl")), metrics

    return run_stage


def test_programs_are_kept_when_their_tests_pass_and_mended_ones_show_how(
    make: Callable[..., Any], tokenizer: Tokenizer
):
    first = {"right": RIGHT, "wrong": WRONG, "lint": UNDEFINED, "broken": BROKEN, "never": WRONG, "empty": RIGHT}
    mended = {"wrong": RIGHT, "lint": RIGHT, "broken": RIGHT}
    with answering(writer(first, mended, {"empty": VACUOUS})) as server:
        lines, drops, metrics = make(server, code_of(*first), execution=10, repairs=1)
        asked = len(server.requests)
        again = make(server, code_of(*first), execution=10, repairs=1)
        assert len(server.requests) == asked
    assert again == (lines, drops, metrics)
    by_case = {line["messages"][0]["content"].rpartition("Case: ")[2].rstrip("."): line for line in lines}
    assert {case: line["repairs"] for case, line in by_case.items()} == {"right": 0, "wrong": 1, "lint": 1, "broken": 1}
    assert Counter(drop["reason"] for drop in drops) == {"unsolved": 1, "vacuous": 1}
    assert (metrics["synthesize.execution"]["value"], metrics["synthesize.execution.repaired"]["value"]) == (4, 0.75)
    said = [(message["role"], message.get("learn", True)) for message in by_case["wrong"]["messages"]]
    assert said == [("user", True), ("assistant", False), ("user", True), ("assistant", True)]
    assert "assert twice(2) == 4" in by_case["wrong"]["messages"][2]["content"]
    assert "AssertionError" in by_case["wrong"]["messages"][2]["content"]
    assert "factor" in by_case["lint"]["messages"][2]["content"]
    assert "SyntaxError" in by_case["broken"]["messages"][2]["content"]
    assert "second ```python block" not in json.dumps(lines)  # what the model is told besides stays out of the chat
    rendered = render(to_chat(by_case["wrong"]), tokenizer)
    learnt = tokenizer.decode([token for token, learn in zip(rendered.ids, rendered.mask) if learn])
    assert "2 * x" in learnt
    assert "3 * x" not in learnt


def test_malformed_replies_busy_servers_and_time_outs_are_overcome(make: Callable[..., Any]):
    write = writer({"right": RIGHT}, {})
    seen: Counter[str] = Counter()
    bad: dict[str, Callable[[], Reply | None]] = {
        PROBLEM: lambda: (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"}),
        SOLUTION: lambda: completion("I had rather not write code."),
        TESTS: lambda: (200, b"<html>gateway</html>", {}),
    }

    def reply(request: dict[str, Any]) -> Reply | None:
        system = request["messages"][0]["content"]
        seen[system] += 1
        return bad[system]() if seen[system] == 1 else write(request)

    with answering(reply) as server:
        begin = time.monotonic()
        lines, drops, _ = make(server, code_of("right"), execution=5)
    assert time.monotonic() - begin > 0.3
    assert (len(lines), drops) == (1, [])
    assert set(seen.values()) == {2}


def test_a_snippet_whose_questions_fail_is_dropped_and_the_others_go_on(make: Callable[..., Any]):
    write = writer({"right": RIGHT, "late": RIGHT}, {})

    def reply(request: dict[str, Any]) -> Reply | None:
        if "case_late" in request["messages"][1]["content"]:
            time.sleep(0.6)
        return write(request)

    with answering(reply) as server:
        lines, drops, _ = make(server, code_of("right", "late"), execution=5, endpoint={"timeout": 0.4, "tries": 1})
    assert len(lines) == 1
    assert [(drop["reason"], "Timeout" in drop["detail"]) for drop in drops] == [("model", True)]


@pytest.mark.parametrize(
    ("code", "told"), [(WRONG, "AssertionError"), (ENDLESS, "stopped after"), ("import os\nos._exit(0)", "died")]
)
def test_tests_fail_with_what_went_wrong(code: str, told: str, monkeypatch: pytest.MonkeyPatch):
    limits = checks.Limits(seconds=1.0, memory=1 << 30)
    monkeypatch.setattr(checks.run, "__defaults__", (limits,))
    assert told in (failing(code, CHECKS) or "")


def test_right_programs_pass_and_tests_that_show_nothing_are_found():
    assert failing(RIGHT, CHECKS) is None
    assert not is_vacuous(RIGHT, CHECKS)
    assert is_vacuous(RIGHT, VACUOUS)
    assert failing("import sys\nsys.exit(0)\n", CHECKS)  # ends before its tests
    assert run("print(1 + 1)") == (True, "2")


@pytest.mark.parametrize("installed", [True, False])
def test_the_linter_finds_names_that_nothing_defines(installed: bool, monkeypatch: pytest.MonkeyPatch):
    if not installed:
        monkeypatch.setattr(checks, "ruff", lambda: None)
    elif checks.ruff() is None:
        pytest.skip("needs ruff")
    assert linter().startswith("ruff" if installed else "names")
    assert "factor" in (static_problem(UNDEFINED) or "")
    assert "SyntaxError" in (static_problem(BROKEN) or "")
    good = "from os import path as p\ndef f(a, *b, c=1, **d):\n    global g\n    g = [x for x in b if (y := x)]\n"
    good += "    return p, y, g\n"
    assert static_problem(good + "try:\n    f(1)\nexcept OSError as e:\n    print(e, __name__)\n") is None


def test_snippets_are_found_and_chosen_by_their_own_hash():
    outside = "    def indented(x, y):\n        total = x + y  # the sum of both of them\n        return total * 2\n"
    text = f"Prose.\n\n{code_of('a')}\n\n{outside}\nMore."
    found = list(find_snippets([("d1", text), ("d2", text)]))
    assert [(each.document, each.language) for each in found] == [("d1", "python"), ("d1", "python")]
    assert found[1].code.startswith("def indented")
    assert found[1].code.endswith("return total * 2")
    many = list(find_snippets([("d", code_of(*"abcdefghij"))]))
    chosen = choose(many, 4, 0, "x")
    assert [each for each in choose(many[:-1], 9, 0, "x") if each in chosen] == [
        each for each in chosen if each != many[-1]
    ]
    assert choose(many, 10, 1, "x") != choose(many, 10, 0, "x")


def test_replies_are_read_in_the_clothes_that_models_give_them():
    assert code_blocks("<think>```python\nno\n```</think>```py\nyes = 1\n```") == ["yes = 1\n"]
    assert one_program("```python\na = 1\n```\nor\n```\na = 1\nb = 2\n```") == "a = 1\nb = 2\n"
    assert one_program("a = 1") is None
    for reply in ("bugs: 1\nintent: 0", '{"bugs": 1, "intent": 0}', "**Bugs**: 1, *Intent* = 0", "Intent: 0. Bugs: 1."):
        assert grades(reply, ("bugs", "intent")) == {"bugs": 1, "intent": 0}
    for reply in ("bugs: 1", "bugs: 2\nintent: 1", "bugs: 1\nbugs: 0\nintent: 1", "", "bugs: 1.5\nintent: 1"):
        assert grades(reply, ("bugs", "intent")) is None
    assert pairs("Q: who?\nA: me\n\n2. **Question:** why\nso?\n**Answer:** because\n") == [
        ("who?", "me"),
        ("why\nso?", "because"),
    ]
    assert pairs("none") is None
