"""BFCL's rules: verdicts that benchmarks/bfcl.py found the published scorer to give, and a model's score."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from puna.cli import app
from puna.errors import PunaError
from puna.evals.bfcl import Case, load_cases, problem, score, turns_problem
from puna.evals.bfcl_literals import read_java, read_javascript
from puna.infer.engine import Sampling
from puna.text.chat import ToolCall
from puna.text.tokenizer import Tokenizer


def function(properties: dict[str, Any], required: Sequence[str] = (), name: str = "f") -> dict[str, Any]:
    properties = {k: v if isinstance(v, dict) else {"type": v} for k, v in properties.items()}
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": "A function.", "parameters": parameters}


def verdict(kind: Any, accepted: list[Any], value: Any, category: str = "simple_python") -> bool:
    """Whether one argument is right."""
    case = Case("x", category, [], [function({"a": kind})], [{"f": {"a": accepted}}])
    return problem(case, [ToolCall("f", {"a": value})]) is None


STRINGS, DICTS = {"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "dict"}}


@pytest.mark.parametrize(
    ("kind", "accepted", "right", "wrong"),
    [
        ("integer", [5], [5], [5.0, "5", True, 6, [5]]),
        ("integer", [1, ""], [1], [True, "", None]),
        ("float", [5.0], [5.0, 5], ["5.0", 5.1]),
        ("boolean", [True], [True], ["true", 1, False]),
        ("string", ["New York, NY"], ["New York, NY", "new york ny", "NEW_YORK-N.Y."], ["New York", "", 7]),
        ("string", ["it's"], ['it"s'], ["its"]),
        ("string", [3], [3], ["3"]),  # the recorded answer is of another type: it has to be that very value
        ("any", ["x"], ["x"], [1]),
        ("integer", ["size"], ["size"], ["Size", 4]),  # the name of a variable
        ("dict", [{"k": ["v", ""], "n": [1]}], [{"k": "V", "n": 1}, {"n": 1}], [{"k": "v"}, {"n": 1, "m": 2}, [], "x"]),
        ("dict", [""], [], [{}]),
        (STRINGS, [["a b", "c"]], [["A B", "c"]], [["c", "a b"], ["a b"], [], "ab", [1, 2]]),
        (STRINGS, [["a"], ""], [["a"], []], [["b"]]),
        ({"type": "array", "items": {"type": "float"}}, [[1.5, 2]], [[1.5, 2.0]], [[1.5], ["1.5", "2"], [2, 1.5]]),
        (DICTS, [[{"k": ["v"]}, {"k": ["w"]}]], [[{"k": "v"}, {"k": "w"}]], [[{"k": "w"}, {"k": "v"}], [{"k": "v"}]]),
        ({"type": "tuple", "items": {"type": "integer"}}, [[1, 2]], [[1, 2]], [[1], "1, 2"]),
    ],
)  # fmt: skip
def test_values(kind: Any, accepted: list[Any], right: list[Any], wrong: list[Any]):
    assert [value for value in right if not verdict(kind, accepted, value)] == []
    assert [value for value in wrong if verdict(kind, accepted, value)] == []


@pytest.mark.parametrize(
    ("category", "kind", "accepted", "right", "wrong"),
    [
        ("simple_java", "integer", [5], ["5"], [5, "5L", "x"]),
        ("simple_java", "long", [5], ["5L", "5l"], ["5"]),
        ("simple_java", "float", [1.5], ["1.5f"], ["1.5"]),
        ("simple_java", "double", [150.0], ["1.5e2"], ["1.5f"]),
        ("simple_java", "boolean", [True], ["true"], [True, "True", "1"]),
        ("simple_java", "any", ["monitor"], ["monitor", "Monitor"], ["other"]),
        ("simple_java", "boolean", ["isDone"], ["isDone"], ["isdone", "true"]),
        ("simple_java", {"type": "ArrayList", "items": {"type": "String"}}, [["a", "b"]],
         ['new ArrayList<>(Arrays.asList("a", "b"))', 'new ArrayList<String>() {{ add("a"); add("b"); }}'],
         ['new ArrayList<>(Arrays.asList("b", "a"))', "new ArrayList<>()", '["a", "b"]']),
        ("simple_java", "HashMap", [{"k": [1]}], ['new HashMap<String, Integer>() {{ put("k", 1); }}'], ["{}"]),
        ("simple_javascript", "String", ["it"], ["it", "'it'", '"It"'], ["its"]),
        ("simple_javascript", "Bigint", [9], ["9n"], ["9"]),
        ("simple_javascript", "Boolean", [False], ["false"], [False, "0"]),
        ("simple_javascript", {"type": "array", "items": {"type": "String"}}, [["a", "b"]],
         ['["a", "b"]', "new Array('a', 'b')"], ['["a"]', "a, b"]),
        ("simple_javascript", "dict", [{"k": ["v"], "n": [[1, 2]]}], ['{"k": "v", "n": [1, 2]}'], ['{"k": "v"}', "{}"]),
    ],
)  # fmt: skip
def test_java_and_javascript(category: str, kind: Any, accepted: list[Any], right: list[Any], wrong: list[Any]):
    assert [value for value in right if not verdict(kind, accepted, value, category)] == []
    assert [value for value in wrong if verdict(kind, accepted, value, category)] == []


def test_literals():
    assert read_java("new int[]{1, 2}", "Array", "integer") == [1, 2]
    assert read_java('new Object[]{1, "a", true, 2L, 1.5f, x}', "Array") == [1, "a", True, 2, 1.5, "x"]
    assert read_java("new HashMap<>()", "HashMap") == {}
    assert read_javascript("[[1, 2], [3, 4]]", "array", "array") == [[1, 2], [3, 4]]
    assert read_javascript("new Array()", "array") == []
    assert read_javascript('{"a": true, b: [1.5, "x"]}', "dict") == {"a": True, "b": [1.5, "x"]}
    assert read_javascript('""', "String") == ""
    assert read_javascript("12", "String") == "12"


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def test_arguments_and_names():
    functions = [function({"a": "integer", "b": "string"}, ["a"])]
    case = Case("x", "simple_python", [], functions, [{"f": {"a": [1], "b": ["x", ""]}}])
    assert problem(case, [call("f", a=1)]) is None
    assert problem(case, [call("f", a=1, b="x")]) is None
    assert problem(case, [call("f", b="x")]) == "a is missing"
    assert problem(case, [call("f", a=1, c=2)]) == "c does not belong"
    assert problem(case, [call("g", a=1)]) == "g is called for f"
    assert problem(case, []) == "0 calls where 1 are right"
    assert problem(case, [call("f", a=1)] * 2) == "2 calls where 1 are right"
    strict = Case("x", "simple_python", [], functions, [{"f": {"a": [1], "b": ["x"]}}])
    assert problem(strict, [call("f", a=1)]) == "b is left out"


def test_several_functions():
    functions = [function({"a": "integer"}, ["a"], "f"), function({"a": "integer"}, ["a"], "g")]
    multiple = Case("x", "live_multiple", [], functions, [{"g": {"a": [1]}}])
    assert problem(multiple, [call("g", a=1)]) is None
    assert problem(multiple, [call("f", a=1)]) == "f is called for g"
    answers = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}, {"g": {"a": [3]}}]
    parallel = Case("x", "parallel_multiple", [], functions, answers)
    assert problem(parallel, [call("g", a=3), call("f", a=2), call("f", a=1)]) is None
    # each answer takes the first call that fits, as in the published scorer: nothing is left for the second
    assert problem(parallel, [call("f", a=1), call("f", a=2), call("g", a=3)]) == "no call fits the recorded one of f"


def test_whether_to_call():
    for category, none, some in (("irrelevance", True, False), ("live_relevance", False, True)):
        case = Case("x", category, [], [function({})], [])
        assert (problem(case, []) is None) == none
        assert (problem(case, [call("f")]) is None) == some


def test_turns():
    recorded = [["cd(folder='x')", "ls(True)"], [], ["mv('a', destination='b')"]]
    right = [[call("pwd"), call("cd", folder="x"), call("ls", a=True)], [], [call("mv", source="a", destination="b")]]
    assert turns_problem(right, recorded) is None
    assert turns_problem([right[0][::-1], *right[1:]], recorded) == "turn 1: ls(True) is missing"
    assert turns_problem([right[0], [call("ls")], right[2]], recorded) == (
        "turn 2: ls is called where nothing is to be done"
    )
    assert turns_problem(right[:2], recorded) == "2 turns where 3 are recorded"


@pytest.mark.parametrize("category", ["simple_python", "multiple", "parallel", "live_simple"])
def test_recorded_answers_are_right(shared_data, category: str):
    """The first value that is recorded for each argument; a few records contradict their own function."""
    right = []
    for case in load_cases(shared_data("tools/bfcl_v4"), category):
        given = [{k: v[0] for k, v in accepted.items() if "" not in v} for a in case.answers for accepted in a.values()]
        if not any("{" in json.dumps(list(arguments.values())) for arguments in given):
            calls = [ToolCall(next(iter(a)), arguments) for a, arguments in zip(case.answers, given)]
            right.append(problem(case, calls) is None)
    assert len(right) > 50
    assert sum(right) / len(right) > 0.97


def test_questions_can_be_asked(shared_data):
    for category in ("irrelevance", "live_relevance", "simple_java", "simple_javascript"):
        case = load_cases(shared_data("tools/bfcl_v4"), category)[0]
        assert case.schemas()[0]["function"]["parameters"]["type"] == "object"
        assert (case.answers == []) == ("relevance" in category)


class Fake:
    """An engine that gives each prompt its reply."""

    def __init__(self, tokenizer: Tokenizer, replies: list[str]) -> None:
        self.tokenizer, self.replies = tokenizer, replies
        self.model = SimpleNamespace(config=SimpleNamespace(max_seq_len=2000))
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[list[int]]]:
        self.prompts = [self.tokenizer.decode(list(prompt)) for prompt in prompts]
        return [[[*self.tokenizer.encode(reply), self.tokenizer.eot_id]] for reply in self.replies]


def test_the_score_of_a_model():
    tokenizer = Tokenizer.train(["call a function with the right arguments " * 20], 300, 16)
    cases = [
        Case(str(n), "simple_java", [{"role": "user", "content": text}], [function({"a": "long"}, ["a"])],
             [{"f": {"a": [n]}}])
        for n, text in enumerate(("zero", "one", "x" * 4000))
    ]  # fmt: skip
    engine: Any = Fake(tokenizer, ['{"name": "f", "parameters": {"a": "0L"}}', "I cannot"])
    figure, replies = score(engine, cases, Sampling(max_tokens=20))
    assert (figure["value"], figure["n"]) == (pytest.approx(1 / 3, abs=1e-4), 3)
    assert figure["low"] < figure["value"] < figure["high"]
    assert [reply["wrong"] is None for reply in replies] == [True, False, False]
    assert "tokens, the model takes" in replies[2]["wrong"]
    assert '"type": "object"' in engine.prompts[0]
    assert "Written as Java text of type long" in engine.prompts[0]


def test_data_that_is_missing(tmp_path: Path):
    with pytest.raises(PunaError, match="category 'memory': choose out of simple_python"):
        load_cases(tmp_path, "memory")
    with pytest.raises(PunaError, match=r"no parallel.jsonl or parallel.jsonl.gz in"):
        load_cases(tmp_path, "parallel")
    row = {"id": "1", "question": [[{"role": "user", "content": "x"}]], "function": [function({})]}
    (tmp_path / "irrelevance.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert load_cases(tmp_path, "irrelevance")[0].answers == []
    result = CliRunner().invoke(app, ["eval", "bfcl", str(tmp_path), str(tmp_path / "none")])
    assert "has none of BFCL's files" in str(result.exception)
