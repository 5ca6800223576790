"""Outputs of a required form."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.infer.grammar import Grammars
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names

Make = Callable[..., Engine]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["llama", "vicuña"]}, "ages": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


def text_of(engine: Engine, sampling: Sampling, number: int = 0) -> tuple[str, str | None, list[int]]:
    engine.add(list(b"Say: "), sampling, number)
    text, tokens, finish = "", [], None
    while finish is None:
        for output in engine.step():
            text, tokens, finish = text + output.text, tokens + output.tokens, output.finish
    return text, finish, tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_follows_the_schema(make_engine: Make, temperature: float):
    engine = make_engine()
    for number in range(4):
        bias = {ord("]"): 3.0}  # a model with random weights would go on with digits for long
        sampling = Sampling(300, temperature, json_schema=json.dumps(SCHEMA), logit_bias=bias)
        text, finish, tokens = text_of(engine, sampling, number)
        if finish == "length":
            continue
        found = json.loads(text)
        assert list(found) == ["name", "ages"]
        assert found["name"] in ("llama", "vicuña")
        assert all(isinstance(age, int) for age in found["ages"])
        assert tokens[-1] in engine.tokenizer.stop_ids
        return
    raise AssertionError("no output ended")


def test_white_space_is_not_the_models_to_choose(make_engine: Make):
    """A model that would write nothing but spaces writes one where one belongs, and comes to an end."""
    bias = {ord(space): 100.0 for space in " \n\t"}
    schema = {"type": "object", "properties": {"a": {"enum": [1]}, "b": {"type": "array", "items": {"enum": [2]}}}}
    schema |= {"required": ["a", "b"], "additionalProperties": False}
    text, finish, _ = text_of(make_engine(), Sampling(60, json_schema=json.dumps(schema), logit_bias=bias | {93: 50.0}))
    assert (text, finish) == ('{"a": 1, "b": []}', "stop")


def test_an_empty_schema_is_any_object(make_engine: Make):
    bias = {ord("}"): 50.0}
    text, finish, _ = text_of(make_engine(), Sampling(200, json_schema="{}", logit_bias=bias))
    assert finish == "stop"
    assert json.loads(text) == {}


@pytest.mark.parametrize("speculate", ["off", "ngram"])
def test_a_regular_expression_is_matched_as_a_whole(make_engine: Make, speculate):
    expression = r"(ab|ba){4,6}-[0-9]{2}"
    sampling = Sampling(40, 1.0, regex=expression, speculate=speculate)
    engine = make_engine()
    texts = [text_of(engine, sampling, number) for number in range(10)]
    assert all(re.fullmatch(expression, text) and finish == "stop" for text, finish, _ in texts)
    assert len({text for text, _, _ in texts}) > 5
    assert texts == [text_of(engine, replace(sampling, speculate="off"), number) for number in range(10)]


def test_requests_with_and_without_a_form_share_steps(make_engine: Make):
    engine = make_engine()
    asked = [Sampling(12), Sampling(12, regex="[x-z]{12}"), Sampling(12, 1.0, regex="[0-4]{12}")]
    found = {engine.add([i, 2, 3], sampling): b"" for i, sampling in enumerate(asked)}
    while engine.running or engine.waiting:
        for output in engine.step():
            found[output.request] += bytes(output.tokens)
    assert [bytes(make_engine().generate([[0, 2, 3]], asked[0])[0][0])] == [found[0]]
    assert re.fullmatch(b"[x-z]{12}", found[1])
    assert re.fullmatch(b"[0-4]{12}", found[2])


def test_what_cannot_be_followed_is_refused(make_engine: Make):
    engine = make_engine()
    wrong: list[dict[str, Any]] = [{"json_schema": "{not json"}, {"json_schema": "[1]"}, {"regex": "("}]
    for fields in wrong:
        with pytest.raises(PunaError, match=f"sampling.{next(iter(fields))}"):
            engine.add([1], Sampling(5, **fields))
    assert engine.waiting == 0


def test_masks_are_as_wide_as_any_vocabulary():
    tokenizer = Tokenizer(
        {bytes([i]): i for i in range(256)} | {b"ab": 256, b"abc": 257, b"c!": 258}, special_names(16)
    )
    grammar = Grammars(tokenizer)(Sampling(regex="[ab]{2}c"))
    assert grammar is not None
    first, *after = grammar.masks([256, 99, 5])
    assert first is not None
    assert len(first) == 275
    assert np.flatnonzero(first).tolist() == [ord("a"), ord("b"), 256, 257]
    assert [mask if mask is None else np.flatnonzero(mask).tolist() for mask in after] == [
        [ord("c")], sorted(tokenizer.stop_ids), None,
    ]  # fmt: skip
    grammar.push(257)
    assert [np.flatnonzero(mask).tolist() for mask in grammar.masks([]) if mask is not None] == [
        sorted(tokenizer.stop_ids)
    ]


def test_requests_that_ask_for_the_same_begin_alike(make_engine: Make):
    """A grammar is compiled once, and how far one output has come does not move the next."""
    engine = make_engine()
    sampling = Sampling(20, regex="[ab]{5}")
    first, second = engine.grammar(sampling), engine.grammar(sampling)
    assert first is not None and second is not None and first is not second  # noqa: PT018
    assert engine._grammars._compiled.cache_info().misses == 1
    before = second.masks([])[0]
    first.push(ord("a"))
    assert np.array_equal(np.asarray(before), np.asarray(second.masks([])[0]))
    assert text_of(engine, sampling)[0] == text_of(engine, sampling)[0]
