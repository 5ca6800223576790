"""/v1/completions: what evaluation harnesses send, against the engine itself."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from puna.infer.engine import Engine, Sampling
from tests.serve.kit import BYTES, MAX_LEN, random_engine

PROMPTS = [list(range(40, 90)), [7], [200, 201, 202] * 30]


@pytest.fixture(scope="module")
def alone() -> Engine:
    """The same model, outside the server."""
    return random_engine()


def ask(live: SimpleNamespace, **body: Any) -> dict[str, Any]:
    reply = live.client.post("/v1/completions", json={"model": "m0", "temperature": 0, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def events(live: SimpleNamespace, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
    with live.client.stream("POST", path, json={"model": "m0", "stream": True, **body}) as reply:
        assert reply.status_code == 200
        lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_echo_tells_every_token_of_the_prompt(live: SimpleNamespace, alone: Engine):
    for _ in range(2):  # the second time from the prefix cache
        reply = ask(live, prompt=PROMPTS, max_tokens=1, logprobs=1, echo=True, seed=1234)
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
        for choice, prompt, wanted in zip(reply["choices"], PROMPTS, alone.log_probs(PROMPTS)):
            found = choice["logprobs"]
            assert {len(found[key]) for key in found} == {len(prompt) + 1}
            assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
            assert found["token_logprobs"][1 : len(prompt)] == pytest.approx(wanted.tolist(), abs=1e-4)
            assert found["tokens"][: len(prompt)] == [
                BYTES.decode([i]) if i < 128 else f"bytes:\\x{i:02x}" for i in prompt
            ]
            for token, logprob, top in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]))[1:]:
                assert top[token] == logprob  # as floats: greedy is judged by equality
                assert 1 <= len(top) <= 2
            assert choice["text"].startswith(BYTES.decode(prompt))
        chosen = [choice["logprobs"]["top_logprobs"][-1] for choice in reply["choices"]]
        assert [len(top) for top in chosen] == [1, 1, 1]  # temperature 0 takes the likeliest


def test_a_batch_is_each_prompt_alone(live: SimpleNamespace):
    together = ask(live, prompt=PROMPTS, max_tokens=20)["choices"]
    assert [choice["text"] for choice in together] == [
        ask(live, prompt=prompt, max_tokens=20)["choices"][0]["text"] for prompt in PROMPTS
    ]


def test_text_gets_begin_of_text_and_tokens_stay(live: SimpleNamespace):
    with_bos = ask(live, prompt="llama", max_tokens=4, echo=True, logprobs=0)
    assert with_bos["choices"][0]["logprobs"]["tokens"][:6] == ["<|begin_of_text|>", *"llama"]
    assert with_bos["choices"][0]["logprobs"]["text_offset"][:6] == [0, 0, 1, 2, 3, 4]
    assert with_bos["choices"][0]["text"].startswith("llama")
    assert with_bos["usage"]["prompt_tokens"] == 6
    ids = [BYTES.bos_id, *BYTES.encode("llama")]
    for same in ({"prompt": ids}, {"prompt": [ids]}, {"prompt": ["llama"]}):
        assert ask(live, max_tokens=4, echo=True, logprobs=0, **same)["choices"] == with_bos["choices"]
    assert ask(live, prompt="llama", max_tokens=4, add_special_tokens=False)["usage"]["prompt_tokens"] == 5
    # a special token's name in a prompt is ordinary text
    assert ask(live, prompt="<|eot_id|>", max_tokens=1)["usage"]["prompt_tokens"] == 1 + len("<|eot_id|>")


def test_echo_alone(live: SimpleNamespace):
    (choice,) = ask(live, prompt="llama", max_tokens=0, echo=True, logprobs=1)["choices"]
    assert choice["text"] == "llama"
    assert len(choice["logprobs"]["tokens"]) == 6
    assert choice["finish_reason"] == "length"


def test_a_prompt_may_leave_room_for_one_token(live: SimpleNamespace):
    prompt = [i % 256 for i in range(MAX_LEN - 1)]
    (choice,) = ask(live, prompt=prompt, max_tokens=1, echo=True, logprobs=1)["choices"]
    assert len(choice["logprobs"]["tokens"]) == MAX_LEN
    reply = live.client.post("/v1/completions", json={"model": "m0", "prompt": [*prompt, 1], "max_tokens": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert ask(live, prompt=[*prompt[:-9]], max_tokens=None)["usage"]["completion_tokens"] <= 10


def test_seeds_and_numbers(live: SimpleNamespace, alone: Engine):
    body = {"prompt": [PROMPTS[0]] * 2, "max_tokens": 12, "temperature": 1.0, "n": 2, "seed": 5, "ignore_eos": True}
    texts = [choice["text"] for choice in ask(live, **body)["choices"]]
    assert len(set(texts)) == 4
    sampling = Sampling(12, 1.0, seed=5, ignore_stop=True)
    wanted = alone.generate([PROMPTS[0]] * 2, sampling, n=2)
    assert texts == [BYTES.decode(ids, skip_special=True) for replies in wanted for ids in replies]
    body["seed"] = None
    assert ask(live, **body)["choices"] != ask(live, **body)["choices"]


def test_stop_strings_end_the_text_before_them(live: SimpleNamespace):
    whole = ask(live, prompt=PROMPTS[0], max_tokens=40)["choices"][0]["text"]
    stop = whole[5:7]
    for given in (stop, ["never there", stop]):
        (choice,) = ask(live, prompt=PROMPTS[0], max_tokens=40, stop=given)["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_a_bias_rules(live: SimpleNamespace):
    (choice,) = ask(live, prompt=PROMPTS[0], max_tokens=5, logit_bias={"65": 100})["choices"]
    assert choice["text"] == "AAAAA"


def test_a_stream_adds_up(live: SimpleNamespace):
    body: dict[str, Any] = {"prompt": PROMPTS, "max_tokens": 10, "temperature": 0, "echo": True, "logprobs": 2}
    whole = ask(live, **body)
    parts = events(live, **body, stream_options={"include_usage": True})
    assert parts[-1]["choices"] == []
    usage = parts.pop()["usage"]
    assert {key: usage[key] for key in ("prompt_tokens", "completion_tokens")} == {
        key: whole["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    }
    assert all(part["usage"] is None for part in parts)
    for choice in whole["choices"]:
        pieces = [piece for part in parts for piece in part["choices"] if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for key, values in choice["logprobs"].items():
            assert [value for piece in pieces for value in piece["logprobs"][key]] == values
        assert [piece["finish_reason"] for piece in pieces if piece["finish_reason"]] == [choice["finish_reason"]]
    assert "usage" not in events(live, prompt="a", max_tokens=1)[0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 999]}, "token 999 is not in this model's vocabulary of 272"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens = 0"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "frequency_penalty": 0.5}, "frequency_penalty"),
        ({"prompt": "a", "repetition_penalty": 1.1}, "repetition_penalty is not a parameter that this server knows"),
        ({"prompt": "a", "n": "2"}, "n:"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {"300": 1}}, "token 300"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options is for streams"),
        ({"prompt": "", "add_special_tokens": False}, "an empty prompt"),
        ({"prompt": ["a"] * 65}, "65 completions in one request; this server takes 64"),
    ],
)
def test_what_cannot_be_done_is_told(live: SimpleNamespace, body: dict[str, Any], told: str):
    reply = live.client.post("/v1/completions", json={"model": "m0", **body})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert told in error["message"]
    assert error["type"] == "invalid_request_error"
