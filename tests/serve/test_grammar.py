"""JSON and regular expressions through the API, over a real engine, whose random model would say anything else."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from puna.infer.engine import Sampling
from tests.serve.kit import random_engine, serving

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["llama", "alpaca"]}, "tame": {"type": "boolean"}},
    "required": ["kind", "tame"],
    "additionalProperties": False,
}
CHAT, ASK = "chat/completions", [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "pet", "parameters": SCHEMA}}]
DENSE = {str(ord(space)): -100 for space in " \n\t\r"}  # a random model would write spaces for ever


def ask(live: SimpleNamespace, path: str, **body: Any) -> dict[str, Any]:
    reply = live.client.post(f"/v1/{path}", json={"model": "m0", "temperature": 0, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def is_of_schema(text: str) -> bool:
    value = json.loads(text)
    return value.keys() == {"kind", "tame"} and value["kind"] in ("llama", "alpaca") and isinstance(value["tame"], bool)


def test_json_schemas(live: SimpleNamespace):
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    choices = ask(live, CHAT, messages=ASK, response_format=form, temperature=1, n=4, logit_bias=DENSE)["choices"]
    assert all(is_of_schema(choice["message"]["content"]) for choice in choices)
    flat = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    assert ask(live, "responses", input="Hi", text=flat, max_output_tokens=1)["output"][0]["content"][0]["text"] == "{"
    body = {"prompt": "Hi", "json_schema": SCHEMA, "max_tokens": 80, "logit_bias": DENSE}
    assert is_of_schema(ask(live, "completions", **body)["choices"][0]["text"])


def test_any_object(live: SimpleNamespace):
    body = {"response_format": {"type": "json_object"}, "logit_bias": {str(ord("}")): 20, str(ord('"')): 10}}
    assert isinstance(json.loads(ask(live, CHAT, messages=ASK, **body)["choices"][0]["message"]["content"]), dict)


def test_forced_calls(live: SimpleNamespace):
    named = {"type": "function", "function": {"name": "pet"}}
    for choice in ("required", named):
        (found,) = ask(live, CHAT, messages=ASK, tools=TOOLS, tool_choice=choice, logit_bias=DENSE)["choices"]
        (call,) = found["message"]["tool_calls"]
        assert call["function"]["name"] == "pet"
        assert is_of_schema(call["function"]["arguments"])
        assert found["finish_reason"] == "tool_calls"


def test_regular_expressions(live: SimpleNamespace):
    text = ask(live, "completions", prompt="Hi", regex="[a-c]{3}-(llama|alpaca)", max_tokens=30)["choices"][0]["text"]
    assert re.fullmatch("[a-c]{3}-(llama|alpaca)", text)


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "lama"}}}},
        {"regex": "("},
        {"regex": "a", "response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}},
    ],
)
def test_what_is_no_grammar(live: SimpleNamespace, body: dict[str, Any]):
    reply = live.client.post("/v1/chat/completions", json={"model": "m0", "messages": ASK, **body})
    assert reply.status_code == 400
    assert "sampling." in reply.json()["error"]["message"]


def test_others_go_on_while_a_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch):
    engine = random_engine()
    compiling, go_on = threading.Event(), threading.Event()
    compiled = engine.grammar

    def slow(sampling: Sampling) -> Any:
        compiling.set()
        assert go_on.wait(30)
        return compiled(sampling)

    monkeypatch.setattr(engine, "grammar", slow)
    body = {"prompt": "Hi", "max_tokens": 9}
    with serving(engine) as live, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, live, "completions", **body, regex="[ab]{3}")
        assert compiling.wait(30)
        assert ask(live, "completions", **body)["usage"]["completion_tokens"] > 0
        assert not asked.done()
        go_on.set()
        assert re.fullmatch("[ab]{3}", asked.result()["choices"][0]["text"])
        assert live.models[0].worker.in_hand == 0
