"""Who may ask for how much: keys, origins, sizes, the queue; leaving clients, failing engines and the end."""

import json
import logging
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from puna.serve import guard
from puna.serve.guard import Access
from tests.serve.kit import Scripted, random_engine, serving, wait_for

CHAT = {"model": "m0", "messages": [{"role": "user", "content": "Hi"}]}


def post(live: SimpleNamespace, **more: Any) -> httpx.Response:
    return live.client.post("/v1/chat/completions", json=CHAT | more)


# The door


def test_the_key_is_asked_for_everywhere_but_the_page(monkeypatch: pytest.MonkeyPatch):
    compared = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    with serving(Scripted(), access=Access(key="sésame", local=False)) as live:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/page/config", "/nowhere", "/page/../v1/models"):
            reply = live.client.get(path)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] == "invalid_api_key"
        assert post(live).status_code == 401
        for wrong in ("Bearer sesame", "Bearer", "Basic sésame", "sésame", "Bearer sésamee"):
            headers = {"Authorization": wrong.encode("latin-1")}
            assert live.client.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer sésame".encode("latin-1"), "Host": "llama.example"}
        assert live.client.get("/v1/models", headers=right).status_code == 200
        assert live.client.get("/health").status_code == 200
    assert compared
    assert set(compared) == {(32, 32)}  # digests: their length tells nothing of the key's


def test_without_a_key_only_this_machine_is_answered(live: SimpleNamespace):
    for host in ("localhost", "127.0.0.1:80", "[::1]:9", "LOCALHOST:1"):
        assert live.client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "[", "", "user@localhost@evil.example"):
        assert live.client.get("/health", headers={"Host": host}).status_code == 403


def test_pages_of_other_origins_are_not_answered(live: SimpleNamespace):
    own = live.url.removeprefix("http://")
    assert live.client.get("/v1/models", headers={"Origin": f"http://{own}"}).status_code == 200
    for origin in ("http://evil.example", "null", f"http://{own}.evil.example", "http://localhost:1"):
        reply = live.client.get("/v1/models", headers={"Origin": origin})
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers
    # a form cannot send JSON without asking first, and asking is refused
    simple = live.client.post("/v1/completions", content=json.dumps({"model": "m0", "prompt": "a"}).encode())
    assert simple.status_code == 400
    assert live.client.options("/v1/completions").status_code == 405


def test_every_answer_has_headers_and_an_id_that_the_log_has(live: SimpleNamespace, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "puna.serve")
    reply = live.client.get("/nowhere%0Aat-all")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    name = reply.headers["x-request-id"]
    assert live.client.get("/health", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert live.client.get("/health", headers={"X-Request-Id": "bad id"}).headers["x-request-id"] != "bad id"
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith(f"{name} GET '/nowhere\\nat-all' 404") for line in lines)


def test_large_bodies():
    with serving(Scripted(), access=Access(most_bytes=1000)) as live:
        assert post(live).status_code == 200
        reply = post(live, user="x" * 1000)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
        pieces = (b" " * 100 for _ in range(20))  # chunked: no length is told beforehand
        assert live.client.post("/v1/completions", content=pieces).status_code == 413


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"1" * 5000, b"[" * 100_000, b'{"model": "\\ud800"}', b"\xff", b"null"]
)
def test_bodies_that_are_none(live: SimpleNamespace, body: bytes):
    reply = live.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_unknown_models(live: SimpleNamespace):
    headers = {"content-type": "application/json"}
    reply = live.client.post("/v1/completions", content=rb'{"model": "gpt\ud800", "prompt": "a"}', headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert live.client.get("/v1/models/m0").json()["id"] == "m0"
    assert live.client.get("/v1/models/m1").status_code == 404


# The queue


def test_a_full_queue_says_when_to_come_again():
    engine = Scripted()
    engine.gate.clear()
    with serving(engine, most=3) as live:
        replies: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: replies.append(post(live, n=2)))]
        threads[0].start()
        wait_for(lambda: engine.running == 2)
        refused = post(live, n=2)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["code"] == "server_full"
        threads.append(threading.Thread(target=lambda: replies.append(post(live))))  # one place is left
        threads[1].start()
        wait_for(lambda: live.models[0].worker.in_hand == 3)
        assert post(live).status_code == 429
        engine.gate.set()
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200, 200]
        assert post(live, n=3).status_code == 200
        assert live.models[0].worker.in_hand == 0
        counts = live.client.get("/metrics").text
    assert 'puna_refused_total{model="m0"} 2.0' in counts
    assert 'puna_requests_total{path="/v1/chat/completions",status="429"} 2.0' in counts


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_cache_within_one_step(stream: bool):
    engine = Scripted(lambda prompt, number: "x" * 3000)
    with serving(engine) as live:
        body = json.dumps(CHAT | {"stream": stream}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: engine.steps > 3)
            engine.gate.clear()  # a step is being made
            time.sleep(0.05)
        worker = live.models[0].worker
        wait_for(lambda: worker.in_hand == 0)
        during = engine.steps
        engine.gate.set()
        wait_for(lambda: not engine.running)
        ((_, at),) = engine.aborted
        assert at <= during + 1
        assert post(live, max_tokens=1).status_code == 200


def test_a_real_engine_gets_its_blocks_back():
    engine = random_engine()
    with serving(engine) as live:
        free = engine.free_blocks
        for _ in range(3):
            body = {"model": "m0", "prompt": "a" * 100, "max_tokens": 400, "stream": True, "ignore_eos": True, "n": 4}
            with live.client.stream("POST", "/v1/completions", json=body) as reply:
                next(reply.iter_lines())
        wait_for(lambda: engine.free_blocks == free and not engine.running and not engine.waiting)


# Failures and the end


def test_a_failing_engine_does_not_take_the_server_with_it(caplog: pytest.LogCaptureFixture):
    engine = Scripted()
    with serving(engine) as live:
        engine.fail = RuntimeError("out of memory")
        reply = post(live)
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
        assert "out of memory" not in reply.text
        with live.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as stream:
            last = [line for line in stream.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        engine.fail = None
        assert post(live).status_code == 200
        assert live.client.get("/health").status_code == 200
        assert live.models[0].worker.in_hand == 0
    assert "out of memory" in caplog.text


def test_a_dead_engine_is_not_healthy():
    with serving(Scripted(), Scripted()) as live:
        live.models[1].worker.stop()
        reply = live.client.get("/health")
        assert reply.status_code == 503
        assert "m1" in reply.json()["error"]["message"]
        assert post(live).status_code == 200


def test_the_end_lets_requests_end():
    engine = Scripted(lambda prompt, number: "x" * 50)
    with serving(engine) as live:
        with live.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
            lines = reply.iter_lines()
            next(lines)
            engine.gate.clear()
            live.server.should_exit = True  # what uvicorn does on SIGTERM
            time.sleep(0.2)
            with pytest.raises(httpx.ConnectError):
                httpx.get(live.url + "/health")
            engine.gate.set()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert "".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in rest[:-1]) == "x" * 50
        live.thread.join(10)
        assert not live.thread.is_alive()


def test_models_side_by_side():
    with serving(Scripted(lambda p, n: "one"), Scripted(lambda p, n: "two")) as live:
        assert [model["id"] for model in live.client.get("/v1/models").json()["data"]] == ["m0", "m1"]
        for name, said in (("m0", "one"), ("m1", "two")):
            assert post(live, model=name).json()["choices"][0]["message"]["content"] == said
        assert live.client.post("/tokenize", json={"prompt": "a"}).status_code == 404
