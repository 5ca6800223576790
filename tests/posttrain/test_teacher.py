"""Back-translation, a teacher's answers and a judge's grades, against servers that answer in OpenAI's form."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.endpoint import Asker, Endpoint, GiveUpError, HttpModel
from puna.infer.local import LocalModel
from puna.log import Log
from puna.posttrain.chats import read_jsonl
from puna.posttrain.data import stage
from puna.posttrain.data.judge import GENERAL, Grade, judge
from puna.posttrain.data.sample import Sample
from puna.posttrain.data.score import drop_low
from puna.posttrain.synthesis import back_translation, teacher
from puna.posttrain.synthesis.back_translation import CODE, JUDGE, same
from puna.posttrain.synthesis.found import Drop, DropError
from puna.posttrain.synthesis.snippets import Snippet
from puna.posttrain.synthesis.teacher import Prompt, is_right, read_prompts
from puna.recipe import parse_recipe
from puna.text.chat import Chat, Message
from tests.openai_server import Reply, answering, completion


def asker_of(url: str, **options: Any) -> Asker:
    endpoint = Endpoint(url, "m", wait=0.001, **options)
    return Asker(HttpModel(endpoint), endpoint)


# -- back-translation --

WORDS = "It defines a function which takes a number and gives back what the {case} case asks for, and nothing else."
SNIPPETS = {
    "equal": "def equal(x):\n    '''Old words.'''\n    return x + 1\n",
    "prints": "total = 0\nfor number in (1, 2, 3):  # prints\n    total += number\nprint(total)\n",
    "differs": "print('differs', 1 + 1)\n",
    "faithful": "def faithful(x):\n    return [y for y in x if y]\n",
    "unfaithful": "def unfaithful(x):\n    return [y for y in x if y]\n",
    "broken": "def broken(x):\n    return [y for y in x if y]\n",
}
AGAIN = {
    "equal": "def equal(x):\n    '''New words.'''\n\n    return x + 1  # one more\n",
    "prints": "print(sum([1, 2, 3]))\n",
    "differs": "print('differs', 3)\n",
    "faithful": "def faithful(x):\n    return list(filter(None, x))\n",
    "unfaithful": "def unfaithful(x):\n    return x\n",
    "broken": "def broken(x:\n",
}


def translator(request: dict[str, Any]) -> Reply:
    if len(request["messages"]) == 1:  # a teacher's question
        return completion("Yes.")
    system, text = (message["content"] for message in request["messages"][:2])
    case = sorted((name for name in SNIPPETS if name in text), key=len)[-1]
    if system == JUDGE:
        return completion(f"faithful: {int(case == 'faithful')}\ncomplete: 1")
    if system == CODE:
        return completion(f"```python\n{AGAIN[case]}```")
    return completion(WORDS.format(case=case))


def test_words_are_kept_where_the_code_comes_back():
    snippets = [Snippet("d", "python", code) for code in SNIPPETS.values()]
    with answering(translator) as server, asker_of(server.url) as asker:
        lines, drops = back_translation.dialogues(snippets, asker)
        judged = sum(request["messages"][0]["content"] == JUDGE for request in server.requests)
    assert [line["proof"] for line in lines] == ["syntax", "behaviour", "judge"]
    assert [drop.reason for drop in drops] == ["behaviour", "judge", "syntax"]
    assert judged == 2  # what is proved is not asked
    assert all(line["messages"][0]["content"].count("```") == 2 for line in lines)
    assert lines[0]["messages"][1]["content"] == WORDS.format(case="equal")


def test_code_in_another_language_is_told_by_the_judge_alone():
    assert same(Snippet("d", "c", "int main() {}"), "int main() {}") is None
    with pytest.raises(DropError, match="behaviour"):
        same(Snippet("d", "python", "print(1)"), "print(2)")


# -- teacher --


GREETING = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Greet me."}]


def test_answers_are_kept_that_pass_what_the_prompt_brings(tmp_path: Path):
    tests = "def test_it():\n    assert inc(1) == 2\n"
    records: list[dict[str, Any]] = [
        {"prompt": "Write inc.", "tests": tests},
        {"prompt": "How much is 6 times 7?", "answer": "42"},
        {"messages": [*GREETING, {"role": "assistant", "content": "x"}]},
        {"prompt": "Never right.", "answer": "42"},
        {"prompt": "Too long."},
        {"prompt": "Write inc."},
        {"prompt": "Write inc.", "chosen": 3},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}], "tools": [{}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "{broken\n")

    def reply(request: dict[str, Any]) -> Reply:
        question, number = request["messages"][-1]["content"], request["seed"]
        assert request["temperature"] == 0.8
        said = {
            "Write inc.": f"```python\ndef inc(x):\n    return x + {number}\n```",
            "How much is 6 times 7?": f"It is {40 + number}.",
            "Greet me.": f"Hello, number {number}!",
            "Never right.": "It is 41.",
            "Too long.": "and so on and so",
        }[question]
        return completion(said, finish="length" if question == "Too long." else "stop")

    found = list(read_prompts([path]))
    prompts = [each for each in found if isinstance(each, Prompt)]
    dropped = [(each.name, each.reason) for each in found if isinstance(each, Drop)]
    assert [(name.rpartition(" ")[2], reason) for name, reason in dropped] == [
        ("6", "duplicate"), ("7", "form"), ("8", "tools"), ("9", "json")
    ]  # fmt: skip
    with answering(reply) as server, asker_of(server.url) as asker:
        lines, drops = teacher.dialogues(prompts, asker, 4, 0.8)
        assert len(server.requests) == 4 * len(prompts)
    assert [line["messages"][-1]["content"] for line in lines] == [
        "```python\ndef inc(x):\n    return x + 1\n```", "It is 42.", "Hello, number 0!"
    ]  # fmt: skip
    assert lines[2]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert [drop.reason for drop in drops] == ["wrong", "length"]


def test_a_reward_model_chooses_among_the_right_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Longest:
        @classmethod
        def load(cls, directory: Path) -> "Longest":
            assert directory == tmp_path
            return cls()

        def score(self, chats: list[Chat]) -> list[float]:
            return [len(chat.messages[-1].content) for chat in chats]

    monkeypatch.setattr("puna.posttrain.reward_model.Scorer", Longest)
    prompts = [Prompt(name, Chat([Message("user", name)])) for name in ("a", "b")]
    with (
        answering(lambda request: completion("x" * (1 + (request["seed"] * 2) % 5))) as server,
        asker_of(server.url) as asker,
    ):
        lines, _ = teacher.dialogues(prompts, asker, 4, 1.0, tmp_path)
    assert [line["messages"][-1]["content"] for line in lines] == ["xxxxx", "xxxxx"]


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("42", "So it is 42.", True),
        ("42", "42 is less than 43", False),
        ("1234", "In all 1,234.", True),
        ("Paris", "the capital is paris", True),
        ("Paris", "the capital is Rome", False),
    ],
)
def test_answers_are_compared_by_their_last_number_or_by_words(answer: str, text: str, right: bool):
    assert is_right(Prompt("p", Chat([]), answer=answer), text) is right


def test_a_directory_s_model_answers_as_an_endpoint_does(model_folder: Path):
    model = LocalModel.load(model_folder)
    endpoint = Endpoint("", "m", max_tokens=8)
    prompts = [Prompt(name, Chat([Message("user", name)])) for name in "abcdef"]
    with Asker(model, endpoint) as asker:
        together = teacher.dialogues(prompts, asker, 2, 1.0)
        alone = [asker.model.complete(request_of(name)) for name in "ab"]
        with pytest.raises(GiveUpError):
            asker.model.complete(request_of("x" * 200_000))  # longer than the model can read
        assert [asker.model.complete(request_of(name)) for name in "ab"] == alone
    assert Counter(drop.reason for drop in together[1]).keys() <= {"length"}
    assert alone[0].finish in ("length", "stop")
    assert 1 <= alone[0].tokens_out <= 8


def request_of(text: str) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 8,
        "temperature": 1.0,
        "seed": 3,
    }


# -- judge --


def sample(number: int, topic: str = "general/other") -> Sample:
    return Sample(Chat([Message("user", f"q{number}"), Message("assistant", f"a{number}")]), "s", number, topic)


def test_a_judge_gives_three_points_or_of_code_two():
    def reply(request: dict[str, Any]) -> Reply:
        system, text = (message["content"] for message in request["messages"][:2])
        if "q3" in text:
            return completion("I like it.")
        if "bugs" in system:
            return completion('{"bugs": 1, "intent": 0}')
        return completion("\n".join(f"**{name}**: {int(name != 'tone' or 'q1' in text)}" for name in GENERAL))

    samples = [sample(1), sample(2), sample(3), sample(4, "code/web")]
    with answering(reply) as server, asker_of(server.url, tries=2) as asker:
        assert judge(samples, asker) == [Grade(3, 3), Grade(2, 3), None, Grade(1, 2)]


def test_what_the_reward_model_or_the_judge_calls_good_stays():
    samples = [sample(number) for number in range(4)]
    grades = [Grade(3, 3), None, Grade(2, 3), Grade(0, 2)]
    kept, dropped = drop_low(samples, np.array([0.0, 1.0, 2.0, 3.0]), 0.75, grades)
    assert [each.line for each in kept] == [0, 3]
    assert [each.quality for each in samples] == [1.0, 0.5, 0.75, 1.0]
    assert [each.detail for each in dropped] == [
        "reward 1.0000, the quantile is 3.0000; the judge gave no grades",
        "reward 2.0000, the quantile is 3.0000; judge 2 of 3",
    ]
    kept, dropped = drop_low(samples, None, 0.75, grades)
    assert [each.line for each in kept] == [0]


def test_the_stage_asks_the_judge_and_asks_nothing_twice(tmp_path: Path, out: Path, log: Log):
    lines = [{"instruction": f"Tell of {i * 7919}", "output": f"It is {i * 104729}"} for i in range(12)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def reply(request: dict[str, Any]) -> Reply:
        good = int("7919" in request["messages"][1]["content"])
        return completion("\n".join(f"{name}: {good}" for name in GENERAL))

    with answering(reply) as server:
        knobs = {"sources": [str(tmp_path / "mine.jsonl")], "judge": {"url": server.url, "model": "Llama-3.3-70B"}}
        recipe = parse_recipe({"name": "x", "chats": knobs}, "test")
        stage.run(recipe, {}, out, log)
        assert len(server.requests) == 12
        stage.run(recipe, {}, out, log)
        assert len(server.requests) == 12
    assert [line["line"] for line in read_jsonl(out / "chats.jsonl")] == [2, 11]
    assert {line["detail"] for line in read_jsonl(out / "dropped.jsonl")} == {"judge 0 of 3"}
    assert "Llama 3.3 Community License" in (out / "NOTICE").read_text()


def test_the_stage_makes_what_the_recipe_asks_of_the_model(
    tmp_path: Path, out: Path, log: Log, make_recipe: Callable[..., Any]
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from puna.posttrain.synthesize import run

    corpus = tmp_path / "corpus"
    (corpus / "documents").mkdir(parents=True)
    text = "\n\n".join(f"```python\n{code}```" for code in SNIPPETS.values() if len(code) > 60)
    table = pa.Table.from_pylist([{"id": "d1", "title": "t", "language": "en", "text": text}])
    for path in (corpus / "documents" / "code.parquet", corpus / "held_out.parquet"):
        pq.write_table(table, path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "equal?"}\n{"no": 1}\n')
    with answering(translator) as server:
        knobs = {
            "tool_chats": 0, "plain_chats": 1, "question_chats": 0, "preference_problems": 0, "back_translation": 9,
            "teacher_prompts": [str(tmp_path / "p.jsonl")], "teacher_answers": 2,
            "endpoint": {"url": server.url, "model": "m"},
        }  # fmt: skip
        metrics = run(make_recipe(synthesize=knobs), {"corpus": corpus}, out, log)
    sources = Counter(line.get("source") for line in read_jsonl(out / "sft.jsonl"))
    assert sources == {None: 1, "back-translation": 1, "teacher": 1}
    assert metrics["synthesize.teacher"]["value"] == 1
    assert [line["reason"] for line in read_jsonl(out / "dropped.jsonl")] == ["form"]
    assert not (out / "NOTICE").exists()
