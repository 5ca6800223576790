"""The official client parses every reply, and its types hold every reply strictly."""

import asyncio
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from tests.serve.kit import TAG, Scripted, serving

ASK: Any = [{"role": "user", "content": "Hi"}]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
FLAT_TOOLS: Any = [{"type": "function", "name": "f", "parameters": PARAMETERS, "strict": False}]
CALL = 'Look.<|python_tag|>{"name": "f", "parameters": {"city": "Rome"}}'


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def scripted(engine: Scripted):
    with serving(engine) as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(live: SimpleNamespace):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def strictly(kind: Any, reply: Any) -> Any:
    """The reply, once pydantic has checked it against the client's own type; the client itself takes anything."""
    return kind.model_validate(reply.to_dict(mode="json"))


def test_chat(client: openai.OpenAI):
    reply = client.chat.completions.create(model="m0", messages=ASK, max_completion_tokens=8, n=2, seed=1)
    assert len(strictly(ChatCompletion, reply).choices) == 2
    assert reply.usage
    assert reply.usage.completion_tokens == 16
    assert reply._request_id
    assert reply.id == f"chatcmpl-{reply._request_id}"


def test_logprobs(client: openai.OpenAI):
    reply = client.chat.completions.create(
        model="m0", messages=ASK, max_tokens=8, logprobs=True, top_logprobs=3, temperature=0
    )
    (choice,) = strictly(ChatCompletion, reply).choices
    assert len(choice.logprobs.content) == 8
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert entry.token == entry.top_logprobs[0].token
    parts = client.chat.completions.create(
        model="m0", messages=ASK, max_tokens=8, logprobs=True, top_logprobs=3, temperature=0, stream=True
    )
    streamed = [
        e for part in parts for choice in part.choices if choice.logprobs for e in choice.logprobs.content or []
    ]
    assert [e.to_dict() for e in streamed] == [e.to_dict() for e in choice.logprobs.content]


def test_streams(client: openai.OpenAI):
    body: Any = {"model": "m0", "messages": ASK, "max_tokens": 8, "seed": 3}
    whole = client.chat.completions.create(**body)
    parts = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    for part in parts:
        strictly(ChatCompletionChunk, part)
    text = "".join(choice.delta.content or "" for part in parts for choice in part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage
    assert whole.usage
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_many_at_once(live: SimpleNamespace):
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                body: Any = {"model": "m0", "prompt": f"{number}", "max_tokens": 12, "temperature": 0}
                if number % 2:
                    return strictly(Completion, await client.completions.create(**body)).choices[0].text
                text = ""
                async for part in await client.completions.create(**body, stream=True):
                    text += part.choices[0].text
                return text

            return await asyncio.gather(*(one(number % 8) for number in range(32)))

    texts = asyncio.run(all_of_them())
    assert texts[:8] * 4 == texts
    assert len(set(texts)) == 8


def test_tools(scripted: openai.OpenAI, engine: Scripted):
    engine.script = lambda prompt, number: CALL
    message = (
        strictly(ChatCompletion, scripted.chat.completions.create(model="m0", messages=ASK, tools=TOOLS))
        .choices[0]
        .message
    )
    assert message.content == "Look."
    assert message.tool_calls[0].function.arguments == '{"city": "Rome"}'
    with scripted.chat.completions.stream(model="m0", messages=ASK, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert streamed.tool_calls
    assert streamed.tool_calls[0].function.arguments == '{"city": "Rome"}'
    # the reply goes back as it came, with its result
    engine.script = lambda prompt, number: "Warm."
    history: Any = [*ASK, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "20 C"}]
    assert (
        scripted.chat.completions.create(model="m0", messages=history, tools=TOOLS).choices[0].message.content
        == "Warm."
    )


def test_completions(client: openai.OpenAI):
    reply = client.completions.create(model="m0", prompt=["a", "b"], max_tokens=4, logprobs=2)
    assert [choice.index for choice in strictly(Completion, reply).choices] == [0, 1]
    parts = list(client.completions.create(model="m0", prompt="a", max_tokens=4, stream=True))
    strictly(Completion, parts[-1])  # before the last there is no finish_reason, which OpenAI's own type forgets


def test_embeddings(client: openai.OpenAI):
    texts = ["a llama", "a llama", "two llamas"]
    reply = client.embeddings.create(model="m0", input=texts)  # the client asks for base64 and decodes it
    strictly(CreateEmbeddingResponse, reply)
    one, same, other = (item.embedding for item in reply.data)
    floats = client.embeddings.create(model="m0", input=texts[0], encoding_format="float").data[0].embedding
    assert one == same == pytest.approx(floats, abs=1e-6)
    assert sum(x * x for x in one) == pytest.approx(1, abs=1e-5)
    assert sum(x * y for x, y in zip(one, other)) < 0.999


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["m0"]
    assert client.models.retrieve("m0").owned_by == "puna"


def test_errors(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="presence_penalty") as caught:
        client.chat.completions.create(model="m0", messages=ASK, presence_penalty=1)
    assert caught.value.param == "presence_penalty"


# Responses


def test_responses(client: openai.OpenAI):
    reply = client.responses.create(
        model="m0",
        input="Hi",
        instructions="Be brief.",
        max_output_tokens=6,
        temperature=0,  # drawn, one reply in fifty ends by itself
        include=["message.output_text.logprobs"],
    )
    strictly(Response, reply)
    assert reply.status == "incomplete"
    assert reply.incomplete_details
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage
    assert reply.usage.output_tokens == 6
    assert len(reply.output_text) <= 6
    part: Any = reply.output[0]
    assert len(part.content[0].logprobs) == 6


def test_responses_stream_is_the_whole(client: openai.OpenAI):
    events = list(client.responses.create(model="m0", input="Hi", max_output_tokens=9, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"
    ]  # fmt: skip
    last: Any = events[-1]
    strictly(Response, last.response)
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta")
        == last.response.output_text
    )
    for event in events:
        type(event).model_validate(event.to_dict(mode="json"))
    with client.responses.stream(
        model="m0", input="Hi", max_output_tokens=9, temperature=0
    ) as stream:  # the client's own accumulator
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_responses_with_tools(scripted: openai.OpenAI, engine: Scripted):
    engine.script = lambda prompt, number: CALL
    ask: Any = {"role": "user", "content": "Hi"}
    reply = scripted.responses.create(model="m0", input=[ask], tools=FLAT_TOOLS)
    strictly(Response, reply)
    assert reply.status == "completed"
    assert [item.type for item in reply.output] == ["message", "function_call"]
    called: Any = reply.output[1]
    assert (called.name, called.arguments, called.status) == ("f", '{"city": "Rome"}', "completed")
    events = list(scripted.responses.create(model="m0", input=[ask], tools=FLAT_TOOLS, stream=True))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == called.arguments
    # the items go back as they came, with the call's result
    engine.script = lambda prompt, number: "Warm."
    result: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "20 C"}
    items: Any = [ask, *reply.output, result]
    assert scripted.responses.create(model="m0", input=items, tools=FLAT_TOOLS).output_text == "Warm."
    assert TAG not in str(engine.asked[-1])
