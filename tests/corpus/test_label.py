"""Labels are asked of a real HTTP server that answers in the documented form, or anything but."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.corpus.label import Account, Endpoint, label, read_documents, read_labels
from puna.corpus.tasks import TASKS, find_task
from puna.errors import PunaError
from tests.openai_server import Reply, Server, answering, completion

DOCUMENTS = [(f"d{i:02d}", f"text {i} " + ("good " if i % 3 else "bad ") * 5) for i in range(30)]


def judge(request: dict[str, Any]) -> Reply:
    return completion("1" if "good" in request["messages"][1]["content"] else "0")


def asked(server: Server) -> Counter[str]:
    """How often each document was shown."""
    found = (re.search(r"text (\d+) ", request["messages"][1]["content"]) for request in server.requests)
    return Counter(f"d{int(match[1]):02d}" for match in found if match)


@pytest.fixture
def server() -> Iterator[Server]:
    with answering(judge) as made:
        yield made


@pytest.fixture
def ask(server: Server, tmp_path: Path, log) -> Callable[..., Account]:
    def run(documents=DOCUMENTS, task: str = "quality", **options: Any) -> Account:
        named = "--url, --model judge and the key"
        endpoint = Endpoint(server.url, "judge", **{"wait": 0.001, "concurrency": 4, "named": named} | options)
        return label(documents, find_task(task), endpoint, tmp_path / "labels.jsonl", log)

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]


EXPECTED = [("1" if i % 3 else "0") for i in range(30)]


def test_every_document_gets_its_label_in_order(server: Server, ask, tmp_path: Path):
    account = ask(key="secret")
    assert [(line["id"], line["label"]) for line in lines(tmp_path)] == list(zip([d[0] for d in DOCUMENTS], EXPECTED))
    assert (account.labelled, account.failed, account.repeated) == (30, 0, 0)
    assert (account.tokens_in, account.tokens_out) == (3000, 60)
    assert lines(tmp_path)[0]["tokens"] == [100, 2]
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    request = server.requests[0]
    assert (request["model"], request["temperature"]) == ("judge", 0)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert TASKS["quality"].question in request["messages"][0]["content"]


def test_requests_go_out_together_and_no_more_than_asked_for(server: Server, ask):
    def slow(request: dict[str, Any]) -> Reply:
        time.sleep(0.02)
        return judge(request)

    server.reply = slow
    ask(concurrency=4)
    assert 2 <= server.most <= 4
    assert "Authorization" not in server.headers[0]


def flaky(server: Server, bad: Callable[[], Reply | None]) -> None:
    """Every first request for a document gets the bad answer."""
    seen: set[str] = set()

    def reply(request: dict[str, Any]) -> Reply | None:
        text = request["messages"][1]["content"]
        if text in seen:
            return judge(request)
        seen.add(text)
        return bad()

    server.reply = reply


def slowly() -> Reply:
    time.sleep(0.3)
    return completion("1")


@pytest.mark.parametrize(
    "bad",
    [
        lambda: (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"}),
        lambda: (500, b"oops", {}),
        lambda: (503, {}, {"Retry-After": "soon"}),
        lambda: (200, b"<html>not json", {}),
        lambda: (200, {"choices": []}, {}),
        lambda: (200, [1, 2], {}),
        lambda: completion(None),
        lambda: completion("I cannot say."),
        lambda: completion(""),
        lambda: None,
        slowly,
    ],
    ids=["429", "500", "503", "html", "no-choice", "list", "null", "words", "empty", "hang-up", "timeout"],
)
def test_what_goes_wrong_once_is_asked_again(server: Server, ask, tmp_path: Path, bad: Callable[[], Reply | None]):
    flaky(server, bad)
    account = ask(DOCUMENTS[:8], timeout=0.2 if bad is slowly else 10.0)
    assert [line["label"] for line in lines(tmp_path)] == EXPECTED[:8]
    assert (account.labelled, account.failed, account.repeated) == (8, 0, 8)


def test_a_word_that_is_no_label_is_answered_with_the_labels(server: Server, ask):
    flaky(server, lambda: completion("Perhaps."))
    account = ask(DOCUMENTS[:1])
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert server.requests[1]["messages"][2]["content"] == "Perhaps."
    assert account.tokens_in == 200  # both answers are paid for


def test_a_server_is_given_the_time_it_asks_for(server: Server, ask):
    flaky(server, lambda: (429, {}, {"Retry-After": "0.2"}))
    start = time.monotonic()
    ask(DOCUMENTS[:4])
    assert time.monotonic() - start > 0.2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_ends_the_run_at_once(server: Server, ask, status: int):
    server.reply = lambda request: (status, {"error": {"message": "no such model"}}, {})
    with pytest.raises(PunaError, match=f"status {status}: .*no such model.*check --url, --model judge"):
        ask()
    assert len(server.requests) < 30


def test_a_document_that_fails_is_left_out_and_asked_again_the_next_time(server: Server, ask, tmp_path: Path):
    def reply(request: dict[str, Any]) -> Reply:
        too_long = (400, {"error": "context length"}, {})
        return too_long if "text 7 " in request["messages"][1]["content"] else judge(request)

    server.reply = reply
    account = ask()
    assert (account.labelled, account.failed) == (29, 1)
    assert account.failures == ['d07: status 400: {"error": "context length"}']
    assert asked(server)["d07"] == 1  # such an error does not go away
    server.reply = judge
    account = ask()
    assert (account.labelled, account.already, account.failed) == (1, 29, 0)
    assert lines(tmp_path)[-1]["id"] == "d07"


def test_a_dead_endpoint_ends_the_run_and_keeps_what_was_labelled(server: Server, ask, tmp_path: Path):
    def reply(request: dict[str, Any]) -> Reply:
        return judge(request) if len(server.requests) < 6 else (500, b"dead", {})

    server.reply = reply
    with pytest.raises(PunaError, match=r"20 documents in a row failed, the last with: status 500: dead; what was"):
        ask(tries=2)
    kept = len(lines(tmp_path))
    assert 1 <= kept <= 5
    server.reply = judge
    assert ask().already == kept
    assert Counter(line["id"] for line in lines(tmp_path)) == Counter(name for name, _ in DOCUMENTS)
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(PunaError, match="ConnectError"):
        ask([(f"x{i}", "text") for i in range(30)], tries=1)


def test_a_line_that_was_cut_off_is_asked_again(server: Server, ask, tmp_path: Path):
    ask()
    whole = (tmp_path / "labels.jsonl").read_bytes()
    server.requests.clear()
    (tmp_path / "labels.jsonl").write_bytes(whole[:-20])
    assert ask().labelled == 1
    assert (tmp_path / "labels.jsonl").read_bytes() == whole
    assert asked(server) == {"d29": 1}
    (tmp_path / "labels.jsonl").write_text("no json\n")
    with pytest.raises(PunaError, match=r"labels.jsonl, line 1: no label"):
        ask()


SCRIPT = """
import sys
from pathlib import Path
from puna.corpus.label import Endpoint, label
from puna.corpus.tasks import TASKS
documents = [(f"d{i:02d}", f"text {i} " + ("good " if i % 3 else "bad ") * 5) for i in range(30)]
label(documents, TASKS["quality"], Endpoint(sys.argv[1], "judge", concurrency=3), Path(sys.argv[2]), None)
"""


def test_killed_and_started_again_the_file_is_the_same(server: Server, ask, tmp_path: Path):
    ask()
    whole = (tmp_path / "labels.jsonl").read_bytes()
    server.requests.clear()

    def slow(request: dict[str, Any]) -> Reply:
        time.sleep(0.03)
        return judge(request)

    server.reply = slow
    killed = tmp_path / "killed.jsonl"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url, str(killed)])
    deadline = time.monotonic() + 60
    while (not killed.exists() or killed.read_bytes().count(b"\n") < 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = killed.read_bytes().count(b"\n")
    assert 5 <= before < 30
    os.rename(killed, tmp_path / "labels.jsonl")
    server.requests.clear()
    account = ask()
    assert account.labelled + account.already == 30
    assert before <= account.already
    assert (tmp_path / "labels.jsonl").read_bytes() == whole


def test_answers_are_read_in_the_forms_that_models_give_them():
    task = TASKS["topic"]
    for answer in ("science", "Science.", "**science**", "The label: science", "Some thoughts.\n\nLabel: `Science`\n"):
        assert task.parse(answer) == "science"
    for answer in ("", "\n", "science fiction", "It is about science and art", "sciences"):
        assert task.parse(answer) is None
    assert TASKS["quality-scale"].parse("5") == "5"
    assert TASKS["quality-scale"].parse("50") is None


def test_tasks_of_one_s_own(tmp_path: Path, server: Server, ask):
    path = tmp_path / "task.toml"
    path.write_text('question = "Is it verse?"\n[labels]\nverse = "lines that scan"\nprose = "anything else"\n')
    server.reply = lambda request: completion("Verse")
    ask(DOCUMENTS[:1], task=str(path))
    assert lines(tmp_path)[0]["label"] == "verse"
    assert "Is it verse?" in server.requests[0]["messages"][0]["content"]
    with pytest.raises(PunaError, match="task 'poems' is none of quality, quality-scale, topic, code, reasoning"):
        find_task("poems")
    path.write_text("question = 'x'")
    with pytest.raises(PunaError, match="a task needs `question` and a table `labels`"):
        find_task(str(path))


def test_documents_and_labels_are_read_from_records(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "x", "text": "one"}\n{"text": "two"}\n{"text": " "}\n')
    (first, second) = read_documents(path)
    assert first == ("x", "one")
    assert re.fullmatch("[0-9a-f]{16}", second[0])
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": true}\n{"text": "c", "label": "art"}\n')
    assert list(read_labels(path)) == [("1", "a"), ("1", "b"), ("art", "c")]
    path.write_text('{"text": "a", "label": null}\n')
    with pytest.raises(PunaError, match="record 1 needs `text` and `label`"):
        list(read_labels(path))
