"""Dialogues that call functions of the corpus: schemas as written, values named, calls that fit, nothing run."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.log import Log
from puna.posttrain.chats import read_jsonl, to_chat
from puna.posttrain.data.forms import check
from puna.posttrain.synthesis.signatures import Function, find_functions
from puna.posttrain.synthesis.tool_use import KINDS, OTHERS, dialogues, mismatch, values_in
from puna.posttrain.synthesize import run
from puna.recipe import Recipe
from puna.text.chat import ToolCall, render
from puna.text.tokenizer import Tokenizer
from tests.openai_server import Reply, answering, completion

SOURCE = '''
Some prose, and then code.

def area(width: int, height: "int", unit: Literal["m", "km"] = "m") -> int:
    """Work out the area of a field.

    Args:
        width: From side to side.
    """
    return width * height

class Shelf:
    def put(self, book: str) -> None:
        """Put a book on the shelf."""

async def fetch_all(names: list[str],
                    limits: Optional[Dict[str, float]] = None, deep: bool | None = False) -> typing.List[str]:
    """Fetch every page that is named."""
    raise SystemExit("never run")

def area(x: int) -> int:
    """Another one with the same name."""

def label(text: str, times: int) -> str:
    """Return the text that many times."""

def untyped(x):
    """Return it as it is."""

def odd(x: numpy.ndarray) -> int:
    """Count what is in it."""

def variadic(*parts: str) -> str:
    """Join all of the parts."""

def short(x: int) -> int:
    return x

def broken(x: int -> int:
    """Not Python at all."""

def evil(x: __import__("os").system("touch /tmp/evil"), y: Literal[__import__("os")]) -> int:
    """Run a command when it is read."""

math.isclose(a, b, *, rel_tol=1e-09, abs_tol=0.0)

Return True if the values a and b are close to each other and False otherwise.

print(area)

The call above shows nothing.

Shelf.sort(reverse=False)

Sort the books of the shelf.
'''


@pytest.fixture(scope="module")
def functions() -> list[Function]:
    return find_functions([("d1", SOURCE)])[0]


def test_definitions_and_documented_signatures_become_schemas(functions: list[Function]):
    named = {function.name: function for function in functions}
    assert list(named) == ["area", "fetch_all", "label", "isclose"]
    assert named["area"].schema["function"] == {
        "name": "area",
        "description": "Work out the area of a field.",
        "parameters": {
            "type": "object",
            "properties": {
                "width": {"type": "integer", "description": "From side to side."},
                "height": {"type": "integer"},
                "unit": {"type": "string", "enum": ["m", "km"]},
            },
            "required": ["width", "height"],
        },
    }
    assert named["area"].returns == {"type": "integer"}
    assert named["fetch_all"].properties["limits"] == {
        "anyOf": [{"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}]
    }
    assert named["fetch_all"].returns == {"type": "array", "items": {"type": "string"}}
    assert named["isclose"].properties == {
        "a": {}, "b": {}, "rel_tol": {"type": "number"}, "abs_tol": {"type": "number"}
    }  # fmt: skip
    assert named["isclose"].required == ["a", "b"]


def test_what_is_no_tool_is_dropped_with_its_reason():
    drops = find_functions([("d1", SOURCE)])[1]
    reasons = {drop.name.partition(" ")[0]: drop.reason for drop in drops}
    assert reasons == {
        "put": "method", "area": "duplicate", "untyped": "untyped", "odd": "type", "variadic": "arguments",
        "short": "description", "evil": "type",
    }  # fmt: skip
    assert not Path("/tmp/evil").exists()


@pytest.fixture(scope="module")
def made(functions: list[Function]) -> list[dict[str, Any]]:
    return dialogues(functions, 240, 0)[0]


def calls_of(line: dict[str, Any]) -> list[ToolCall]:
    return [call for message in to_chat(line).messages for call in message.tool_calls]


def test_every_kind_is_made_and_no_question_twice(made: list[dict[str, Any]]):
    kinds = Counter(line["kind"] for line in made)
    assert set(kinds) == set(KINDS)
    assert len(made) == 240
    assert len({line["messages"][0]["content"] for line in made}) == 240


def test_calls_fit_their_schemas_and_the_question_names_their_values(made: list[dict[str, Any]]):
    for line in made:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in line["tools"]}
        assert len(schemas) == len(line["tools"]) <= OTHERS + 3
        question, calls = line["messages"][0]["content"], calls_of(line)
        assert not [wrong for call in calls if (wrong := mismatch(call, schemas))]
        given = [json.dumps(value, ensure_ascii=False) for call in calls for value in call.arguments.values()]
        missing = [value for value in given if value not in question]
        if line["kind"] == "nested":  # the argument is what the first call gave
            told = next(message["content"] for message in line["messages"] if message["role"] == "tool")
            assert len(missing) <= 1
            assert all(told in (value, json.loads(value)) for value in missing)
        else:
            assert not missing
        check(to_chat(line))


def test_each_kind_has_its_shape(made: list[dict[str, Any]]):
    for line in made:
        messages = [message for message in to_chat(line).messages if message.role == "assistant"]
        counts = [len(message.tool_calls) for message in messages]
        assert counts[-1] == 0
        shape = {
            "single": counts == [1, 0],
            "nested": counts == [1, 1, 0],
            "parallel": len(counts) == 2 and counts[0] in (2, 3),
            "multi-step": len(counts) in (3, 4) and set(counts[:-1]) == {1},
            "not-needed": counts == [0],
            "unavailable": counts == [0],
        }
        assert shape[line["kind"]], (line["kind"], counts)


def test_what_is_unavailable_is_not_among_the_tools(functions: list[Function], made: list[dict[str, Any]]):
    for line in (line for line in made if line["kind"] == "unavailable"):
        question = line["messages"][0]["content"].lower()
        wanted = [function for function in functions if function.purpose.lower() in question]
        assert wanted
        assert not {function.name for function in wanted} & {tool["function"]["name"] for tool in line["tools"]}


def test_the_chats_are_rendered_and_equal_twice(
    functions: list[Function], made: list[dict[str, Any]], tokenizer: Tokenizer
):
    assert all(render(to_chat(line), tokenizer).ids for line in made[:40])
    assert dialogues(functions, 240, 0)[0] == made
    assert dialogues(functions, 240, 1)[0] != made
    assert dialogues([], 10, 0) == ([], [])


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (ToolCall("area", {"width": 1, "height": 2}), None),
        (ToolCall("area", {"width": 1}), "area: height is missing"),
        (ToolCall("area", {"width": 1, "height": 2, "depth": 3}), "area: there is no argument depth"),
        (ToolCall("area", {"width": 1, "height": "2"}), 'area: height="2": must be of type integer'),
        (ToolCall("area", {"width": 1, "height": 2, "unit": "mile"}), 'area: unit="mile": must be one of ["m", "km"]'),
        (ToolCall("volume", {}), "there is no function volume"),
    ],
)
def test_a_call_that_does_not_fit_is_told(functions: list[Function], call: ToolCall, wrong: str | None):
    schemas = {function.name: function.schema["function"]["parameters"] for function in functions}
    assert mismatch(call, schemas) == wrong


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "documents").mkdir(parents=True)
    row = {"id": "d1", "title": "t", "language": "en", "text": SOURCE}
    pq.write_table(pa.Table.from_pylist([row]), folder / "documents" / "code.parquet")
    pq.write_table(pa.Table.from_pylist([row]), folder / "held_out.parquet")
    return folder


FEW = {
    "tool_chats": 3, "plain_chats": 2, "question_chats": 0, "preference_problems": 2, "held_out_problems": 2,
    "held_out_questions": 1,
}  # fmt: skip


def test_the_stage_writes_them_and_is_as_it_was_without(
    corpus: Path, make_recipe: Callable[..., Recipe], tmp_path: Path, log: Log
):
    found = []
    for name, count in (("plain", 0), ("some", 30), ("again", 30)):
        out = tmp_path / name
        out.mkdir()
        metrics = run(make_recipe(synthesize=FEW | {"functions": count}), {"corpus": corpus}, out, log)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
        assert metrics.get("synthesize.functions", {"value": 0})["value"] == count
    plain, some, again = found
    assert some == again
    assert some.keys() - plain.keys() == {"dropped.jsonl"}
    lines = list(read_jsonl(tmp_path / "some" / "sft.jsonl"))
    assert Counter(line.get("source") for line in lines) == {None: 5, "functions": 30}
    assert sorted(json.dumps(line) for line in lines if "source" not in line) == sorted(
        plain["sft.jsonl"].decode().splitlines()
    )


def test_a_model_rewords_and_may_not_lose_a_value(
    corpus: Path, make_recipe: Callable[..., Recipe], out: Path, log: Log, functions: list[Function]
):
    def reply(request: dict[str, Any]) -> Reply:
        said = request["messages"][1]["content"]
        if "Fetch every" in said or "fetch every" in said:
            return completion("Something else.")  # every time
        return completion(f"Hey! {said}")

    with answering(reply) as server:
        endpoint = {"url": server.url, "model": "Llama-3.1-8B", "tries": 2}
        knobs = FEW | {"functions": 30, "reword": True, "endpoint": endpoint}
        run(make_recipe(synthesize=knobs), {"corpus": corpus}, out, log)
        asked = len(server.requests)
        first = (out / "sft.jsonl").read_bytes()
        run(make_recipe(synthesize=knobs), {"corpus": corpus}, out, log)
        assert len(server.requests) == asked  # all answers were kept
    assert (out / "sft.jsonl").read_bytes() == first
    lines = [line for line in read_jsonl(out / "sft.jsonl") if line.get("source") == "functions"]
    called = [line for line in lines if calls_of(line)]
    assert {line["messages"][0]["content"].startswith("Hey! ") for line in called} == {True, False}
    assert not any(line["messages"][0]["content"].startswith("Hey!") for line in lines if not calls_of(line))
    assert all(values_in(line["messages"][0]["content"], line) for line in called)
    drops = [line for line in read_jsonl(out / "dropped.jsonl") if line["reason"] == "unphrased"]
    assert drops
    assert "Llama 3.1 Community License" in (out / "NOTICE").read_text()
