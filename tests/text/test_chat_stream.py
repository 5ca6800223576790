"""Streamed calls add up to what `parse` reads in the whole output, however it is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.text.chat import Message, ToolCall, parse
from puna.text.chat_stream import CallArguments, CallStart, CallStream, Delta
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

NAMES = ("f", "get_weather", "brave_search", "wolfram_alpha", "code_interpreter")
BYTES = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
TAG = "<|python_tag|>"
OUTPUTS = [
    "",
    " ",
    "Just words, {braces} and [brackets] too.",
    '{"name": "f", "parameters": {}}',
    '{"name": "f", "parameters": {"a": {"b": [1, "}"]}, "c": "\\"{"}}',
    '{"type": "function", "name": "f", "parameters": {"city": "Łódź 🦙"}}',
    '{"name": "f", "parameters": {"a": 1}, "type": "function"}',
    '{"parameters": {"a": 1}, "name": "f"}',
    '{"name": "not_given", "parameters": {"a": 1}}',
    '{"name": "f", "arguments": {"text": "two\nlines\tand a tab"}}',
    ' \n{"name": "f", "parameters": {"a": 1}}; {"name": "get_weather", "parameters": {"b": 2}} ',
    '{"name": "f", "parameters": {"a": 1}}\n{"name": "f", "parameters": {"a": 2}},{"name": "f", "parameters": {}}',
    '<function=f>{"a": 1}</function>',
    '<function=f>{"a": 1}</function>\n<function=get_weather> {"b": 2}',
    '<function=not_given>{"a": 1}</function>',
    '[f(a=1), get_weather(city="Rome", days=[1, 2])]',
    "[not_given(a=1)]",
    "[1] A footnote, not a call.",
    'brave_search.call(query="who said "no" (twice)?")',
    'brave_search.call(query="a"); wolfram_alpha.call(query="b")',
    'brave_search.call(query="a"), {"name": "f", "parameters": {"a": 1}}; <function=f>{}</function>',
    '{"result": {"name": "f"}, "parameters": 3}',
    '{"name": "f"}',
    '{"name": ["no", "call"], "parameters": {}}',
    "{'name': 'f', 'parameters': {}}",
    "<b>bold</b>",
    "brave_searching is no call",
    'brave_search.call(query="never closed',
    TAG,
    TAG + "print(1)\nprint('two')",
    TAG + '  x = {"a": 1}',
    TAG + '{"a": 1}["a"]',
    TAG + "[f(x) for x in range(3)]",
    TAG + 'brave_search.call(query="llamas")',
    TAG + '{"type": "function", "name": "f", "parameters": {"a": 1}}',
    'I will look it up.<|python_tag|>brave_search.call(query="llamas")',
    '{"thought": 1}<|python_tag|>print("")',
    "[a]<|python_tag|>1 + 1",
]
# Where the call has been told before its end shows that it is none, parse and stream differ by design.
COMMITTED = {'brave_search.call(query="never closed'}


def ids_of(output: str) -> list[int]:
    parts = output.split(TAG)
    ids = BYTES.encode(parts[0])
    for part in parts[1:]:
        ids += [BYTES.python_tag_id, *BYTES.encode(part)]
    return ids


def gather(deltas: list[Delta]) -> Message:
    """The message that a client puts together."""
    content, calls = "", []
    for delta in deltas:
        match delta:
            case str():
                content += delta
            case CallStart():
                assert delta.index == len(calls)
                calls.append([delta.name, ""])
            case CallArguments():
                assert delta.index == len(calls) - 1
                calls[-1][1] += delta.text
    return Message("assistant", content, [ToolCall(name, json.loads(text)) for name, text in calls])


def stream(output: str, cuts: list[int], lag: int = 0) -> list[Delta]:
    """Deltas of an output in pieces that end at `cuts`; the text comes `lag` pieces behind the ids."""
    ids = ids_of(output)
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    reader, decoder, deltas, late = CallStream(NAMES, BYTES), BYTES.stream_decoder(), [], [""] * lag
    for start, end in zip([0, *ends], ends):
        plain = [i for i in ids[start:end] if i != BYTES.python_tag_id]
        late.append(decoder.push(*plain) if plain else "")
        deltas += reader.push(late.pop(0), ids[start:end])
    for text in late:
        deltas += reader.push(text, [])
    return [*deltas, *reader.finish()]


@pytest.mark.parametrize("output", [output for output in OUTPUTS if output not in COMMITTED])
@pytest.mark.parametrize("lag", [0, 3])
def test_the_parts_are_the_whole(output: str, lag: int):
    wanted = parse(ids_of(output), BYTES)
    for size in (1, 2, 3, 7, 1000):
        cuts = list(range(0, len(output.encode()), size))
        assert gather(stream(output, cuts, lag)) == wanted


@given(
    st.lists(st.sampled_from([*OUTPUTS, "; ", "\n", " and "]), max_size=3).map("".join), st.lists(st.integers(0, 300))
)
def test_cuts_change_nothing(output: str, cuts: list[int]):
    assert told(stream(output, cuts)) == told(stream(output, list(range(2000)), lag=2))


def told(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    content = "".join(delta for delta in deltas if isinstance(delta, str))
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, CallStart):
            calls[delta.index] = [delta.name, ""]
        elif isinstance(delta, CallArguments):
            calls[delta.index][1] += delta.text
    return content, [(name, text) for name, text in calls.values()]


def test_arguments_come_before_the_call_ends():
    reader = CallStream(NAMES, BYTES)
    assert reader.push('{"name": "f", "param', []) == []
    assert reader.push('eters": {"a"', []) == [CallStart(0, "f"), CallArguments(0, '{"a"')]
    assert reader.push(": 1", []) == [CallArguments(0, ": 1")]
    assert reader.push("}}", []) == [CallArguments(0, "}")]
    assert not reader.finish()


def test_words_come_at_once():
    reader = CallStream(NAMES, BYTES)
    assert reader.push("Hello", []) == ["Hello"]
    assert reader.push(' {"name": ', []) == [' {"name": ']


def test_a_cut_call_stays_unfinished():
    for output, arguments in (
        (TAG + "print(1", '{"code": "print(1'),
        ('brave_search.call(query="lla', '{"query": "lla'),
        ('{"name": "f", "parameters": {"a', '{"a'),
    ):
        reader = CallStream(NAMES, BYTES)
        deltas = reader.push(output.removeprefix(TAG), ids_of(output)) + list(reader.finish(cut=True))
        assert told(deltas)[1][0][1] == arguments


def test_what_follows_a_call_is_content():
    assert told(stream('{"name": "f", "parameters": {}} is what I would call', [])) == (
        " is what I would call",
        [("f", "{}")],
    )
