"""What models write, read back: Meta's vectors, each known form, and everything that is no call."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.text.chat import Chat, Message, Profile, ToolCall, parse, render
from puna.text.tokenizer import Tokenizer

F = ToolCall("f", {"a": 1})
G = ToolCall("g", {"b": 'it\'s; {x}, "y"'})
F_JSON = '{"name": "f", "parameters": {"a": 1}}'
G_JSON = json.dumps({"name": "g", "parameters": G.arguments})

CALLS = {
    # llama-models, models/llama3/tests/api/test_tool_utils.py
    '<function=getWeather>{"location":"New York","date":"2023-08-05"}': [
        ToolCall("getWeather", {"location": "New York", "date": "2023-08-05"})
    ],
    '[get_boiling_point(liquid_name="water", celcius=True)]': [
        ToolCall("get_boiling_point", {"liquid_name": "water", "celcius": True})
    ],
    '[get_boiling_point(liquid_name="water", celcius=True), get_melting_point(substance="ice", kelvin=False)]': [
        ToolCall("get_boiling_point", {"liquid_name": "water", "celcius": True}),
        ToolCall("get_melting_point", {"substance": "ice", "kelvin": False}),
    ],
    "[calculate_volume(radius=5.2, height=10)]": [ToolCall("calculate_volume", {"radius": 5.2, "height": 10})],
    '[process_data(name="sample", value=42, active=True, ratio=3.14)]': [
        ToolCall("process_data", {"name": "sample", "value": 42, "active": True, "ratio": 3.14})
    ],
    "[f(a=(1, 2))]": [ToolCall("f", {"a": [1, 2]})],
    "[initialize()]": [ToolCall("initialize", {})],
    '[analyze_text(content="Hello, world!", language="en")]': [
        ToolCall("analyze_text", {"content": "Hello, world!", "language": "en"})
    ],
    '[get_boiling_point(liquid={"name":"water", "color":"translucent"}), '
    'convert_temperature(value=[100, 101], from_unit="C", to_unit="F")]': [
        ToolCall("get_boiling_point", {"liquid": {"name": "water", "color": "translucent"}}),
        ToolCall("convert_temperature", {"value": [100, 101], "from_unit": "C", "to_unit": "F"}),
    ],
    # The answers in prompt_format.md for Llama 3.1
    '<|python_tag|>brave_search.call(query="latest price of 1oz gold")<|eom_id|>': [
        ToolCall("brave_search", {"query": "latest price of 1oz gold"})
    ],
    '<|python_tag|>{\n    "type": "function",\n    "name": "trending_songs",\n    "parameters": {\n'
    '        "n": "10",\n        "genre": "all"\n    }\n}<|eom_id|>': [
        ToolCall("trending_songs", {"n": "10", "genre": "all"})
    ],
    '<function=trending_songs>{"n": 10}</function><|eot_id|>': [ToolCall("trending_songs", {"n": 10})],
    "<|python_tag|>print(is_prime(7))  # Output: True<|eom_id|>": [
        ToolCall("code_interpreter", {"code": "print(is_prime(7))  # Output: True"})
    ],
    # Variants that models write
    F_JSON: [F],
    f"\n {F_JSON} \n": [F],
    '{"name": "f", "arguments": {"a": 1}}': [F],
    '{"type": "function", "name": "f", "parameters": {"a": 1}}': [F],
    f"{F_JSON}; {G_JSON}": [F, G],
    f"{F_JSON}, {G_JSON}": [F, G],
    f"{F_JSON};{G_JSON};": [F, G],
    f"{F_JSON}\n{G_JSON}": [F, G],
    f"<|python_tag|>{F_JSON}; {G_JSON}<|eom_id|>": [F, G],
    '<function=f>{"a": 1}</function>\n<function=g>{"b": "it\'s"}</function>': [
        F,
        ToolCall("g", {"b": "it's"}),
    ],
    '{"name": "f", "parameters": {"text": "two\nlines, it\'s so"}}': [ToolCall("f", {"text": "two\nlines, it's so"})],
    'wolfram_alpha.call(query="2+2")': [ToolCall("wolfram_alpha", {"query": "2+2"})],
    '<|python_tag|>brave_search.call(query="who said "no"?")': [ToolCall("brave_search", {"query": 'who said "no"?'})],
    f'<|python_tag|>brave_search.call(query="gold"); wolfram_alpha.call(query="1 oz"), {F_JSON}': [
        ToolCall("brave_search", {"query": "gold"}),
        ToolCall("wolfram_alpha", {"query": "1 oz"}),
        F,
    ],
    '<|python_tag|>code_interpreter.call(code="print("a"), 1); x = {}")': [
        ToolCall("code_interpreter", {"code": 'print("a"), 1); x = {}'})
    ],
    '<|python_tag|>client.call(query="x")': [ToolCall("code_interpreter", {"code": 'client.call(query="x")'})],
}

CONTENT = [
    # llama-models, models/llama3/tests/api/test_tool_utils.py
    "[]",
    '[get_boiling_point(liquid_name="water"), 42]',
    '[get_boiling_point("water", True)]',
    '[[get_boiling_point(liquid_name="water")]]',
    '{"func": get_boiling_point(liquid_name="water")}',
    '[get_boiling_point(liquid_name="water", celcius=True',
    'get_boiling_point(liquid_name="water")',
    '[(get_boiling_point(liquid_name="water"),)]',
    # Text and JSON that are no calls, and calls that are not whole
    "",
    "  Hello.  ",
    '{"name": "Ada", "born": 1815}',
    '{"name": "f", "parameters": "a"}',
    '{"name": 1, "parameters": {}}',
    '{"name": "f", "description": "a function", "parameters": {}}',
    '{"type": "object", "name": "f", "parameters": {}}',
    "{'name': 'f', 'parameters': {}}",
    '{"name": "f", "parameters": {"a": 1}',
    f"{F_JSON} and then I will tell you.",
    f"{F_JSON}; not a call",
    f"I would call {F_JSON}",
    '<function=f>{"a": </function>',
    "<function=f>[1]</function>",
    'You can use brave_search.call(query="gold") for that.',
    'requests.call(query="gold")',
    "[f(a=b)]",
    "[f(**a)]",
    '[f(**{"a": 1})]',
    "[f(a={1, 2})]",
    "[f(a={[]: 1})]",
    "[x.f(a=1)]",
    "[f(a='\\d')",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"name": "f", "parameters": ' + '{"a":' * 100_000,
]


@pytest.mark.parametrize("output", CALLS, ids=range(len(CALLS)))
def test_calls(output: str) -> None:
    assert parse(output) == Message("assistant", "", CALLS[output])


@pytest.mark.parametrize("output", CONTENT, ids=range(len(CONTENT)))
def test_content_stays_as_it_is(output: str) -> None:
    assert parse(output) == Message("assistant", output)
    assert parse(output + "<|eot_id|>") == Message("assistant", output)


def test_text_before_the_tag_is_kept() -> None:
    assert parse("Let me see.<|python_tag|>1 + 1<|eom_id|>") == Message(
        "assistant", "Let me see.", [ToolCall("code_interpreter", {"code": "1 + 1"})]
    )
    assert parse("Let me see.<|python_tag|>") == Message("assistant", "Let me see.")


def test_only_the_special_token_is_the_tag(tokenizer: Tokenizer) -> None:
    text = "<|python_tag|>print(1)<|eom_id|>"
    spelt = tokenizer.encode(text)
    assert parse([*spelt, tokenizer.eot_id], tokenizer) == Message("assistant", text)
    ids = [tokenizer.python_tag_id, *tokenizer.encode("print(1)"), tokenizer.eom_id]
    assert parse(ids, tokenizer) == Message("assistant", "", [ToolCall("code_interpreter", {"code": "print(1)"})])
    with pytest.raises(ValueError, match="need the tokenizer"):
        parse(ids)


names = st.from_regex(r"[a-z][a-z_.]{0,8}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
functions = st.builds(ToolCall, names, st.dictionaries(st.text(), values, max_size=3))
searches = st.builds(
    lambda name, query: ToolCall(name, {"query": query}),
    st.sampled_from(["brave_search", "wolfram_alpha"]),
    st.text(alphabet='ab"; ,{é\n'),
)


@given(st.lists(functions | searches, min_size=1, max_size=3), st.sampled_from(["hf", "meta"]))
@settings(max_examples=150, deadline=None)
def test_rendered_calls_come_back(tokenizer: Tokenizer, calls: list[ToolCall], profile: Profile) -> None:
    chat = Chat([Message("user", "go"), Message("assistant", "", calls)], builtin_tools=["brave_search"])
    prompt = render(Chat(chat.messages[:1], builtin_tools=["brave_search"]), tokenizer, profile=profile)
    ids = render(chat, tokenizer, profile=profile).ids[len(prompt.ids) + len(tokenizer.encode("assistant")) + 3 :]
    assert parse(ids, tokenizer) == chat.messages[1]


@given(st.text(alphabet="{}[]\"':;,=().<>/|a1 \nfunctionamepr_tgbvsh", max_size=60))
@settings(max_examples=300, deadline=None)
def test_parse_takes_any_text(text: str) -> None:
    message = parse(text)
    assert message.tool_calls or message.content == text
