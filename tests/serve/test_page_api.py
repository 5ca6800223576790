"""What the chat page asks for, and the endpoints beside OpenAI's."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from puna.serve.app import PAGE, is_page
from puna.serve.guard import Access
from tests.serve.kit import BYTES, Scripted, serving

TOOLS = '''
COUNT = []


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def fail(why: str) -> str:
    """Fail."""
    raise RuntimeError(why)
'''


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(TOOLS, encoding="utf-8")
    return path


def test_config_and_tools(tools: Path):
    with serving(Scripted(), Scripted(), tools=[str(tools)]) as live:
        config = live.client.get("/page/config").json()
        assert config["models"] == ["m0", "m1"]
        assert config["max_len"] == 4096
        assert [tool["function"]["name"] for tool in config["tools"]] == ["add", "fail"]
        calls = [
            {"name": "add", "arguments": {"a": 1, "b": 2}},
            {"name": "fail", "arguments": {"why": "no reason"}},
            {"name": "nothing", "arguments": {}},
        ]
        results = live.client.post("/page/tools", json={"calls": calls, "conversation": "one"}).json()["results"]
        assert [result["text"] for result in results[:2]] == ["3", "error: no reason"]
        assert [result["error"] for result in results] == [False, True, True]
        for i in range(40):  # more than are kept open
            reply = live.client.post("/page/tools", json={"calls": calls[:1], "conversation": f"c{i}"})
            assert reply.json()["results"][0]["text"] == "3"
        # what the page gets is what a request takes
        body = {"model": "m0", "messages": [{"role": "user", "content": "Hi"}], "tools": config["tools"]}
        assert live.client.post("/v1/chat/completions", json=body).status_code == 200


def test_without_tools_none_run(live: SimpleNamespace):
    assert live.client.get("/page/config").json()["tools"] == []
    reply = live.client.post("/page/tools", json={"calls": [{"name": "add", "arguments": {}}], "conversation": "one"})
    assert reply.status_code == 403
    assert "--tools" in reply.json()["error"]["message"]


def test_only_the_pages_own_files_are_open(tmp_path: Path):
    assert not is_page("/../guard.py")
    assert not is_page("/%2e%2e/guard.py")
    assert not is_page("/v1/models")
    names = [path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()]
    assert all(is_page(f"/{name}") for name in names)
    with serving(Scripted(), access=Access(key="k", local=False)) as live:
        for name in names:
            assert live.client.get(f"/{name}").status_code == 200
        for path in ("/../app.py", "/..%2fapp.py", "/page/config", "/%2e%2e/%2e%2e/errors.py"):
            assert live.client.get(path).status_code == 401


def test_tokenize_and_back(live: SimpleNamespace):
    reply = live.client.post("/tokenize", json={"prompt": "a<|eot_id|>", "return_token_strs": True}).json()
    assert reply["tokens"] == [BYTES.bos_id, *b"a<|eot_id|>"]
    assert reply["token_strs"][:2] == ["<|begin_of_text|>", "a"]
    assert (reply["count"], reply["max_model_len"]) == (12, 2048)
    back = live.client.post("/detokenize", json={"model": "m0", "tokens": reply["tokens"]}).json()
    assert back == {"prompt": "<|begin_of_text|>a<|eot_id|>"}
    chat = {"messages": [{"role": "user", "content": "<|eot_id|>"}]}
    tokens = live.client.post("/tokenize", json=chat).json()["tokens"]
    assert tokens.count(BYTES.eot_id) == 2  # the system message's and the user's
    assert BYTES.decode(tokens).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert live.client.post("/tokenize", json={}).status_code == 400
    assert live.client.post("/detokenize", json={"tokens": [9999]}).status_code == 400


def test_metrics_count_tokens():
    with serving(Scripted(lambda prompt, number: "abcd")) as live:
        body = {"model": "m0", "messages": [{"role": "user", "content": "Hi"}]}
        prompt = live.client.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
        text = live.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['puna_prompt_tokens_total{model="m0"}']) == prompt
    assert float(lines['puna_generated_tokens_total{model="m0"}']) == 5
    assert float(lines['puna_first_token_seconds_count{model="m0"}']) == 1
    assert float(lines['puna_running{model="m0"}']) == 0
    assert float(lines['puna_total_blocks{model="m0"}']) == 1000


def test_models_that_descend_from_llama_say_so():
    with serving(Scripted(), Scripted()) as live:
        live.models[1].llama = "3.1"
        own, metas = live.client.get("/v1/models").json()["data"]
        assert "license" not in own
        assert (metas["license"], metas["notice"]) == ("llama3.1", "Built with Llama")
        assert live.client.get("/v1/models/m1").json() == metas
        assert live.client.get("/page/config").json()["notice"] == "Built with Llama"
        live.models[1].llama = None
        assert live.client.get("/page/config").json()["notice"] == ""
