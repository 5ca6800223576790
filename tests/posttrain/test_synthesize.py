"""Generated chats are right, reproducible, and hold none of what is evaluated."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puna.log import Log
from puna.posttrain.chats import read_jsonl
from puna.posttrain.synthesize import ASKING, LANGUAGES, SNIPPET, clean_title, group_of, problems, run
from puna.recipe import Recipe
from puna.tools import calculator

KNOBS = {
    "tool_chats": 400,
    "plain_chats": 60,
    "question_chats": 90,
    "preference_problems": 200,
    "held_out_problems": 150,
    "held_out_questions": 20,
    "max_operand": 40,
}
PAIR = re.compile(r"(\d+) (?:[-+*]|plus|minus|times) (\d+)")


def document(number: int, language: str) -> dict[str, Any]:
    return {
        "title": f"Page {language} {number} | The site",
        "language": language,
        "text": f"{language} text {number} says little. " * 12,
    }


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "documents").mkdir(parents=True)
    for part, languages in {"general": ["en"], "multilingual": ["de", "fr", "en", "xx"]}.items():
        rows = [document(i, language) for i in range(20) for language in languages]
        rows.append({"title": None, "language": "en", "text": "short"})
        pq.write_table(pa.Table.from_pylist(rows), folder / "documents" / f"{part}.parquet")
    held_out = [document(100 + i, language) for i in range(5) for language in ("en", "de")]
    pq.write_table(pa.Table.from_pylist(held_out), folder / "held_out.parquet")
    return folder


@pytest.fixture
def made(corpus: Path, make_recipe: Callable[..., Recipe], out: Path, log: Log) -> dict[str, list[dict[str, Any]]]:
    run(make_recipe(synthesize=KNOBS), {"corpus": corpus}, out, log)
    return {path.stem: list(read_jsonl(path)) for path in out.glob("*.jsonl")}


def pairs(value: Any) -> set[frozenset[int]]:
    """Every operand pair, in any order, in any string of a JSON value."""
    if isinstance(value, str):
        return {frozenset(map(int, found)) for found in PAIR.findall(value)}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(pairs, inner))


def test_held_out_pairs_never_occur_in_training(made: dict[str, list[dict[str, Any]]]):
    held_out, preference, sft = (pairs(made[name]) for name in ("held_out", "preference", "sft"))
    assert min(len(held_out), len(preference), len(sft)) > 50
    assert not held_out & sft
    assert not held_out & preference
    assert not preference & sft


def test_the_groups_share_out_all_pairs():
    groups = Counter(group_of(a, b) for a in range(100) for b in range(100))
    assert {name: round(count / 1e4, 1) for name, count in groups.items()} == {
        "sft": 0.8, "preference": 0.1, "held_out": 0.1,
    }  # fmt: skip
    assert all(group_of(a, b) == group_of(b, a) for a in range(40) for b in range(40))


def test_tool_dialogues_are_right(made: dict[str, list[dict[str, Any]]]):
    dialogues = [chat["messages"] for chat in made["sft"] if any("tool_calls" in m for m in chat["messages"])]
    assert len(dialogues) == KNOBS["tool_chats"]
    for messages in dialogues:
        assert len(messages) % 4 == 0
        for question, call, result, answer in zip(*[iter(messages)] * 4):
            assert [m["role"] for m in (question, call, result, answer)] == ["user", "assistant", "tool", "assistant"]
            (function,) = [each["function"] for each in call["tool_calls"]]
            expression = function["arguments"]["expression"]
            assert function["name"] == "calculator"
            assert pairs(question["content"]) == pairs(expression)
            assert re.findall(r"\d+", question["content"]) == re.findall(r"\d+", expression)
            assert result["content"] == calculator(expression) == str(eval(expression))
            assert answer["content"] == f"The answer is {result['content']}."
    assert len({m[0]["content"] for m in dialogues}) > 300


def test_questions_without_a_tool_are_answered_right(made: dict[str, list[dict[str, Any]]]):
    plain = [chat["messages"] for chat in made["sft"] if chat["messages"][1]["content"].startswith("The answer is ")]
    assert len(plain) == KNOBS["plain_chats"]
    signs = {"plus": "+", "minus": "-", "times": "*"}
    for question, answer in plain:
        (a, op, b), *_ = re.findall(r"(\d+) (\S+) (\d+)", question["content"])
        assert answer["content"] == f"The answer is {eval(f'{a} {signs.get(op, op)} {b}')}."


def test_evaluation_problems_are_different_and_right(made: dict[str, list[dict[str, Any]]]):
    asked = [q for q in made["held_out"] if q["task"] == "tools.single"]
    for questions, count in ((asked, KNOBS["held_out_problems"]), (made["preference"], KNOBS["preference_problems"])):
        assert len(questions) == count
        signs = {"plus": "+", "minus": "-", "times": "*"}
        solved = set()
        for question in questions:
            a, sign, b = re.findall(r"\d+|[-+*]|plus|minus|times", question["question"])
            solved.add((a, signs.get(sign, sign), b))
            assert str(eval(f"{a} {signs.get(sign, sign)} {b}")) == question["answer"]
        assert len(solved) == count


def test_no_more_problems_than_there_are():
    everything = list(problems("held_out", 10**6, 20, seed=1))
    assert len({(p.a, p.op, p.b) for p in everything}) == len(everything)
    assert len(everything) == 3 * sum(group_of(a, b) == "held_out" for a in range(21) for b in range(21))
    assert {p.op for p in everything} == {"+", "-", "*"}
    assert len({p.question.replace(str(p.a), "").replace(str(p.b), "") for p in everything}) > len(ASKING)


def test_questions_come_from_documents_of_their_own_side(made: dict[str, list[dict[str, Any]]]):
    sft = [chat["messages"] for chat in made["sft"]]
    trained = [(a["content"], b["content"]) for a, b in (m for m in sft if len(m) == 2)]
    language = [pair for pair in trained if pair[0].startswith("Which language")]
    titles = [pair for pair in trained if pair[0].startswith("Give this text")]
    assert len(language) == len(titles) == KNOBS["question_chats"] * 2 // 5
    assert Counter(answer for _, answer in language) == dict.fromkeys(["German", "English", "French"], 12)
    for question, answer in language:
        code = re.search(r"\b(en|de|fr) text", question)
        assert code
        assert LANGUAGES[code[1]] == answer
        assert len(question.partition("\n\n")[2]) <= SNIPPET
    for question, answer in titles:
        code = re.search(r"(..) text (\d+)", question)
        assert code
        assert answer == f"Page {code[1]} {code[2]}"
        assert int(code[2]) < 100

    held_out = [q for q in made["held_out"] if q["task"] != "tools.single"]
    assert Counter(q["task"] for q in held_out) == {"chat.language": 20, "chat.title": 20}
    for question in held_out:
        assert re.search(r"text 10\d says", question["question"])
        if "choices" in question:
            code = re.search(r"(..) text (\d+)", question["question"])
            assert code
            assert len(set(question["choices"])) == 4
            assert question["choices"][question["answer"]] == f"Page {code[1]} {code[2]}"
    assert len({q["answer"] for q in held_out if "choices" in q}) > 2


def test_two_runs_write_the_same_bytes_and_another_seed_others(
    corpus: Path, make_recipe: Callable[..., Recipe], tmp_path: Path, log: Log
):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / name
        out.mkdir()
        recipe = make_recipe(synthesize=KNOBS).model_copy(update={"seed": seed})
        run(recipe, {"corpus": corpus}, out, log)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    assert all(found[0][name] != found[2][name] for name in found[0])


def test_any_kind_of_chat_can_be_left_out(corpus: Path, make_recipe: Callable[..., Recipe], out: Path, log: Log):
    none = {"tool_chats": 0, "plain_chats": 3, "question_chats": 0, "preference_problems": 0}
    run(make_recipe(synthesize=KNOBS | none), {"corpus": corpus}, out, log)
    assert len((out / "sft.jsonl").read_text().splitlines()) == 3
    assert (out / "preference.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("json — JSON encoder — Python 3.11 documentation", "json"),
        ("  Two\n words | Site", "Two words"),
        ("A - B", "A"),
        ("well-known", "well-known"),
    ],
)
def test_clean_title(title: str, cleaned: str):
    assert clean_title(title) == cleaned
