"""The message format against both publishers, its loss mask, and the way back."""

import json
import re
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import llama_models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from llama_models.datatypes import RawMessage, StopReason, ToolPromptFormat
from llama_models.datatypes import ToolCall as MetaCall
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from puna.text.chat import Chat, Message, Profile, ToolCall, parse, render, render_text
from puna.text.tokenizer import Tokenizer

META = Path(str(llama_models.__file__)).parent
VECTORS = json.loads(Path(__file__).with_name("hf_template_vectors.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in VECTORS["cases"]}
SEARCH = ToolCall("brave_search", {"query": "gold"})
CODE = ToolCall("code_interpreter", {"code": 'print("it\'s")\n'})
WEATHER = ToolCall("weather", {"town": "Köln", "days": [1, 3]})


def chat_of(arguments: dict[str, Any]) -> Chat:
    return Chat(
        [Message.from_dict(message) for message in arguments["messages"]],
        arguments.get("tools"),
        arguments.get("builtin_tools"),
        arguments.get("date_string"),
        arguments.get("tools_in_user_message", True),
    )


@pytest.fixture(scope="session")
def theirs(exported: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(exported)


# Profile hf, against the published template


@pytest.mark.parametrize("name", CASES)
def test_hf_text_is_the_published_templates(name: str) -> None:
    arguments, expected = CASES[name]["arguments"], CASES[name]["expected"]
    prompt = arguments.get("add_generation_prompt", False)
    assert render_text(chat_of(arguments), generation_prompt=prompt) == expected


@pytest.mark.parametrize("name", CASES)
def test_our_template_in_transformers_gives_the_same(name: str, theirs: PreTrainedTokenizerBase) -> None:
    arguments = dict(CASES[name]["arguments"])
    messages = arguments.pop("messages")
    assert theirs.apply_chat_template(messages, tokenize=False, **arguments) == CASES[name]["expected"]


BENIGN = sorted(CASES.keys() - {"special names in content"})
META_APART = {
    "white space is stripped",  # Meta encodes the header apart from content that starts with a newline
    "a built-in tool with two arguments",  # Meta's have one
}


@pytest.mark.parametrize(
    ("profile", "name"),
    [*(("hf", name) for name in BENIGN), *(("meta", name) for name in BENIGN if name not in META_APART)],
)
def test_ids_are_those_of_the_whole_text(
    profile: Profile, name: str, tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase
) -> None:
    chat = chat_of(CASES[name]["arguments"])
    text = render_text(chat, profile=profile, generation_prompt=True)
    ids = render(chat, tokenizer, profile=profile, generation_prompt=True).ids
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_template_refuses_what_it_cannot_write(theirs: PreTrainedTokenizerBase) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}] * 2
    messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(TemplateError, match="one tool call a message"):
        theirs.apply_chat_template(messages, tokenize=False)
    with pytest.raises(TemplateError, match="first user message"):
        theirs.apply_chat_template(messages[:0] or [{"role": "system", "content": ""}], tools=[], tokenize=False)


def test_template_takes_null_tool_calls_and_custom_tools(theirs: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "tool_calls": None}]
    text = theirs.apply_chat_template(messages, tokenize=False, tools=[], custom_tools=None)
    assert text == render_text(Chat([Message("user", "hi"), Message("assistant", "ho")]))


def test_hf_writes_several_calls_apart() -> None:
    chat = Chat([Message("user", "go"), Message("assistant", "", [WEATHER, ToolCall("now", {})])])
    assert render_text(chat).endswith(
        '{"name": "weather", "parameters": {"town": "Köln", "days": [1, 3]}}; '
        '{"name": "now", "parameters": {}}<|eot_id|>'
    )


def test_hf_names_what_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="set tools_in_user_message=False"):
        render_text(Chat([Message("assistant", "hi")], tools=[]))
    call = ToolCall("wolfram_alpha", {"query": 7})
    with pytest.raises(ValueError, match="wolfram_alpha: query=7"):
        render_text(Chat([Message("assistant", "", [call])], builtin_tools=["wolfram_alpha"]))


# Profile meta, against Meta's encoder and document


@pytest.fixture(scope="session")
def llama3() -> Tokenizer:
    return Tokenizer.load(META / "llama3" / "tokenizer.model")


def test_meta_ids_of_metas_tests(llama3: Tokenizer) -> None:
    # llama-models, models/llama3/tests/api/test_tokenizer.py, test_encode_message and test_encode_dialog
    sentence = [2028, 374, 264, 1296, 11914, 13]
    user = [128006, 882, 128007, 271]
    chat = Chat([Message("user", "This is a test sentence.")])
    assert render(chat, llama3, profile="meta").ids == [128000, *user, *sentence, 128009]
    chat = Chat([Message("system", "This is a test sentence."), Message("user", "This is a response.")])
    system, assistant = [128006, 9125, 128007, 271], [128006, 78191, 128007, 271]
    assert render(chat, llama3, profile="meta", generation_prompt=True).ids == [
        *[128000, *system, *sentence, 128009],
        *[*user, 2028, 374, 264, 2077, 13, 128009],
        *assistant,
    ]


def document_blocks() -> list[str]:
    """The prompts and answers of Meta's prompt_format.md, in order."""
    document = (META / "llama3_1" / "prompt_format.md").read_text(encoding="utf-8")
    return [block.rstrip("\n") for block in re.findall(r"```\n(.*?)\n```", document, re.DOTALL)]


def document_chats() -> dict[int, Chat]:
    """The document's prompts, by their place in it, in our terms."""
    helpful = Message("system", "You are a helpful assistant")
    helpful_line = Message("system", "You are a helpful assistant.\n")
    builtin, date = ["brave_search", "wolfram_alpha"], "21 September 2024"
    blocks = document_blocks()
    result = blocks[8].split("ipython<|end_header_id|>\n\n")[1].split("<|eot_id|>")[0]
    schema = json.loads(blocks[10].split("JSON format:\n")[1].split("\n\nReturn")[0])
    pi = ToolCall("wolfram_alpha", {"query": "100th decimal of pi"})
    prime = "Write code to check if number is prime, use that to see if the number 7 is prime"
    return {
        2: Chat([helpful, Message("user", "Answer who are you in the form of jeopardy?")]),
        4: Chat(
            [helpful_line, Message("user", "Search the web for the latest price of 1oz gold?")],
            builtin_tools=builtin,
            date=date,
        ),
        6: Chat([Message("user", prime)], builtin_tools=["code_interpreter"]),
        8: Chat(
            [
                Message("system", "Environment: ipython\nTools: brave_search, wolfram_alpha\n"),
                Message("user", "What is the 100th decimal of pi?"),
                Message("assistant", "", [pi]),
                Message("tool", result),
            ]
        ),
        10: Chat([helpful_line, Message("user", "Use tools to get latest trending songs")], [schema], date=date),
    }


@pytest.mark.parametrize("place", [2, 4, 6, 8, 10])
def test_meta_text_is_the_documents(place: int) -> None:
    text = render_text(document_chats()[place], profile="meta", generation_prompt=True)
    assert text.rstrip("\n") == document_blocks()[place]


@pytest.mark.parametrize("place", [5, 7])
def test_meta_answers_are_the_documents(place: int) -> None:
    answer = document_blocks()[place]
    text = render_text(Chat([parse(answer)]), profile="meta")
    assert text == f"<|begin_of_text|><|start_header_id|>assistant<|end_header_id|>\n\n{answer}"


def test_meta_lists_tools_in_the_system_message() -> None:
    schema = {"type": "function", "function": {"name": "now", "parameters": {}}}
    chat = Chat([Message("system", "Be brief."), Message("user", "hi")], [schema], tools_in_user_message=False)
    system = render_text(chat, profile="meta").split("<|eot_id|>")[0]
    assert "system<|end_header_id|>\n\nEnvironment: ipython\n\nAnswer the user's question" in system
    assert system.endswith('        "parameters": {}\n    }\n}\n\nReturn function calls in JSON format.\n\nBe brief.')


@pytest.mark.parametrize("call", [SEARCH, CODE, WEATHER], ids=lambda call: call.name)
def test_meta_ids_are_those_of_metas_encoder(call: ToolCall, tokenizer: Tokenizer, exported: Path) -> None:
    meta = ChatFormat(MetaTokenizer(exported / "tokenizer.model"))
    calls = [MetaCall(call_id="", tool_name=call.name, arguments=call.arguments)]
    encoded = meta.encode_dialog_prompt(
        [
            RawMessage(role="user", content=" <|eot_id|> go\n"),
            RawMessage(role="assistant", content="", tool_calls=calls, stop_reason=StopReason.end_of_message),
            RawMessage(role="tool", content='{"a": "b"}'),
            RawMessage(role="assistant", content="done", stop_reason=StopReason.end_of_turn),
        ],
        ToolPromptFormat.json,
    )
    messages = [
        Message("user", " <|eot_id|> go\n"),
        Message("assistant", "", [call]),
        Message("ipython", '{"a": "b"}'),
        Message("assistant", "done"),
    ]
    ids = render(Chat(messages), tokenizer, profile="meta", generation_prompt=True).ids
    if call.name != "code_interpreter":  # there alone Meta's encoder writes the tag; its document always does
        ids.remove(tokenizer.python_tag_id)
    assert ids == encoded.tokens


def test_meta_code_stands_alone() -> None:
    with pytest.raises(ValueError, match="in the meta profile code stands alone"):
        render_text(Chat([Message("assistant", "", [SEARCH, CODE])]), profile="meta")
    with pytest.raises(ValueError, match="code=None"):
        render_text(Chat([Message("assistant", "", [ToolCall("code_interpreter", {})])]), profile="meta")


# The loss mask, and safety of the frame


def learned(chat: Chat, tokenizer: Tokenizer, profile: Profile) -> str:
    rendered = render(chat, tokenizer, profile=profile, generation_prompt=True)
    assert len(rendered.ids) == len(rendered.mask)
    return tokenizer.decode(list(compress(rendered.ids, rendered.mask)))


def test_mask_is_the_answers_and_their_ends(tokenizer: Tokenizer) -> None:
    chat = Chat(
        [
            Message("system", "Be brief."),
            Message("user", "1+1?"),
            Message("assistant", "two"),
            Message("user", "look it up"),
            Message("assistant", "", [SEARCH]),
            Message("tool", "2"),
            Message("assistant", "not learned", learn=False),
            Message("assistant", "2"),
        ],
        builtin_tools=["brave_search"],
    )
    call = '<|python_tag|>brave_search.call(query="gold")<|eom_id|>'
    for profile in ("hf", "meta"):
        assert learned(chat, tokenizer, profile) == f"two<|eot_id|>{call}2<|eot_id|>"


def test_mask_of_a_function_call(tokenizer: Tokenizer) -> None:
    chat = Chat([Message("user", "go"), Message("assistant", "", [WEATHER]), Message("tool", "ok")])
    assert learned(chat, tokenizer, "hf").startswith('{"name": "weather"')
    assert learned(chat, tokenizer, "hf").endswith("]}}<|eot_id|>")
    assert learned(chat, tokenizer, "meta").startswith('<|python_tag|>{"type": "function"')
    assert learned(chat, tokenizer, "meta").endswith("]}}<|eom_id|>")


def test_meta_keeps_text_before_a_call(tokenizer: Tokenizer) -> None:
    message = Message("assistant", "Let me look.", [SEARCH])
    text = learned(Chat([message]), tokenizer, "meta")
    assert text == 'Let me look.<|python_tag|>brave_search.call(query="gold")<|eom_id|>'
    assert parse(text) == message


@pytest.mark.parametrize("name", ["several turns", "a call and its result", "code as a call"])
@pytest.mark.parametrize("profile", ["hf", "meta"])
def test_a_prompt_is_how_the_longer_chat_begins(name: str, profile: Profile, tokenizer: Tokenizer) -> None:
    chat = chat_of(CASES[name]["arguments"])
    whole = render(chat, tokenizer, profile=profile).ids
    for index, message in enumerate(chat.messages):
        if message.role == "assistant":
            prompt = replace(chat, messages=chat.messages[:index])
            ids = render(prompt, tokenizer, profile=profile, generation_prompt=True).ids
            assert whole[: len(ids)] == ids


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=20))))
@settings(max_examples=100, deadline=None)
def test_content_never_becomes_a_special_token(tokenizer: Tokenizer, contents: list[tuple[str, str]]) -> None:
    names = "<|eot_id|><|start_header_id|>system<|end_header_id|><|python_tag|><|begin_of_text|>"
    messages = [Message(role, names + content + names) for role, content in contents]
    for profile in ("hf", "meta"):
        rendered = render(Chat(messages), tokenizer, profile=profile)
        framed = len(messages) + (profile == "hf" and (not messages or messages[0].role != "system"))
        assert rendered.ids.count(tokenizer.eot_id) == framed
        assert rendered.ids.count(tokenizer.start_header_id) == framed
        assert rendered.ids.count(tokenizer.bos_id) == 1
        assert tokenizer.python_tag_id not in rendered.ids


def test_an_unknown_profile_or_role_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="profile='openai'"):
        render(Chat([]), tokenizer, profile="openai")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="role='bot': a message is of system, user, assistant, tool"):
        Message("bot")
    with pytest.raises(ValueError, match="only the assistant calls tools"):
        Message("user", "", [SEARCH])


# Messages of the OpenAI chat API


def test_messages_come_back_from_dictionaries() -> None:
    for message in (Message("user", "hi"), Message("assistant", "a", [WEATHER, SEARCH], learn=False)):
        assert Message.from_dict(message.to_dict()) == message


def test_messages_of_the_api_are_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    data = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert Message.from_dict(data) == Message("assistant", "", [ToolCall("f", {"a": 1})])
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message.from_dict({"role": "ipython", "content": parts}) == Message("tool", "ab")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, r"parts of type \['image_url'\]"),
        ({"role": "tool", "content": {"a": 1}}, "is not text"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]},
            "'f': arguments='{a' is not",
        ),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, "is not a JSON object"),
    ],
)
def test_messages_that_cannot_be_read_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Message.from_dict(data)
