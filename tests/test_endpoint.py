"""Questions to a model: asked again where that helps, never paid for twice, in order."""

import json
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from puna.endpoint import Asker, Endpoint, GiveUpError, HttpModel, ask_in_order, open_asker
from puna.errors import PunaError
from puna.model.licence import note_llama
from puna.recipe import Recipe
from puna.recipe.endpoint import Endpoint as Knobs
from tests.openai_server import Reply, Server, answering, completion

HELLO = [{"role": "user", "content": "hello"}]


def echo(request: dict[str, Any]) -> Reply:
    return completion(request["messages"][-1]["content"].upper())


def asker_of(server: Server, path: Path | None = None, **options: Any) -> Asker:
    endpoint = Endpoint(server.url, "m", wait=0.001, **options)
    return Asker(HttpModel(endpoint), endpoint, path)


def open_knobs(knobs: dict[str, Any], path: Path) -> Asker:
    return open_asker(Knobs.model_validate(knobs), "x", path)


def test_an_answer_is_kept_and_other_questions_are_asked(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with answering(echo) as server:
        for times in (1, 2):
            with asker_of(server, path) as asker:
                assert asker.text("a", HELLO).text == "HELLO"
                assert asker.remembered == times - 1
                assert (asker.tokens_in, asker.tokens_out) == ((100, 2) if times == 1 else (0, 0))
        with asker_of(server, path) as asker:
            asker.text("a", HELLO, temperature=1.0, seed=1)
            asker.text("a", HELLO, temperature=1.0, seed=2)
            asker.text("a", HELLO, temperature=1.0, seed=1)
            assert (asker.asked, asker.remembered) == (2, 1)
        with asker_of(server, path, max_tokens=99) as asker:
            asker.text("a", HELLO)
        assert [request.get("seed") for request in server.requests] == [None, 1, 2, None]
    assert not any("HELLO" in line and "hello" in line for line in path.read_text().splitlines())


def test_a_file_that_was_cut_off_is_gone_on_with(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with answering(echo) as server:
        with asker_of(server, path) as asker:
            asker.text("a", HELLO)
        whole = path.read_bytes()
        path.write_bytes(whole + whole[:20])
        with asker_of(server, path) as asker:
            asker.text("a", HELLO)
            assert asker.asked == 0
        assert path.read_bytes() == whole
        path.write_text("rubbish\n")
        with pytest.raises(PunaError, match=r"answers.jsonl: .*rubbish.* is no answer .*remove the file"):
            asker_of(server, path)


def test_a_reply_that_cannot_be_read_is_answered_and_read_again():
    def reply(request: dict[str, Any]) -> Reply:
        return completion("7" if len(request["messages"]) == 3 else "seven")

    with answering(reply) as server, asker_of(server) as asker:
        found, answer = asker.ask("a", HELLO, lambda text: int(text) if text.isdigit() else None, "digits, please")
        assert found == 7
        assert answer.tokens_in == 200
        assert server.requests[1]["messages"][1:] == [
            {"role": "assistant", "content": "seven"},
            {"role": "user", "content": "digits, please"},
        ]
        with pytest.raises(GiveUpError, match="cannot be used"):
            asker.ask("a", HELLO, lambda text: None, "again")


def test_results_come_in_order_and_a_dead_model_ends_the_run():
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        if item % 5 == 1 or item > 20:
            raise GiveUpError(f"no {item}")
        return item * item

    stop = threading.Event()
    results = ask_in_order(range(100), work, 4, stop)
    for number, (item, result) in enumerate(islice(results, 41)):
        assert item == number
        assert isinstance(result, GiveUpError) if item % 5 == 1 or item > 20 else result == item * item
    with pytest.raises(PunaError, match=r"20 questions in a row failed, the last with: no 40"):
        next(results)
    assert stop.is_set()


def test_what_a_recipe_names_is_opened_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(PunaError, match=r"x\.url = 'localhost:8000' is no http"):
        open_knobs({"url": "localhost:8000"}, tmp_path / "a")
    with pytest.raises(PunaError, match=r"x\.key_env = 'NO_SUCH_KEY'"):
        open_knobs({"url": "http://localhost", "key_env": "NO_SUCH_KEY"}, tmp_path / "a")
    monkeypatch.setenv("SOME_KEY", "secret")
    with answering(lambda request: (401, {}, {})) as server:
        with (
            open_knobs({"url": server.url, "model": "big", "key_env": "SOME_KEY"}, tmp_path / "a") as asker,
            pytest.raises(PunaError, match=r"check x\.url, \.model = 'big' and the key"),
        ):
            asker.text("a", HELLO)
        assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in (tmp_path / "a").read_text()


def test_a_recipe_that_asks_for_writing_names_a_writer():
    with pytest.raises(ValueError, match=r"reword = True asks a model; give synthesize\.endpoint\.url"):
        Recipe(name="x", synthesize={"reword": True})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("model", "llama", "release"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", None, "3.1"),
        ("llama3.3:70b", None, "3.3"),
        ("llama-4-maverick", None, "4"),
        ("Llama-2-7b", None, "2"),
        ("mine", "3.2", "3.2"),
        ("llama-7b", None, None),
        ("TinyLlama-1.1B", None, None),
        ("qwen3", None, None),
        ("Llama-3.1-8B", "", None),
    ],
)
def test_data_of_a_llama_carry_its_notice(tmp_path: Path, model: str, llama: str | None, release: str | None):
    assert note_llama(tmp_path, model, llama) == release
    assert (tmp_path / "NOTICE").exists() == (release is not None)
    if release:
        assert note_llama(tmp_path, "other") == release
        assert f"Llama {release} Community License" in (tmp_path / "NOTICE").read_text()


def test_answers_are_one_json_list_each(tmp_path: Path):
    with answering(echo) as server, asker_of(server, tmp_path / "a") as asker:
        asker.text("a", HELLO)
    key, *answer = json.loads((tmp_path / "a").read_text())
    assert len(key) == 64
    assert answer == ["HELLO", "stop", 100, 2]
