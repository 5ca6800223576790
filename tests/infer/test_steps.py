"""Requests through add, step and abort: what comes out, when it ends, and what the cache holds meanwhile."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from puna.errors import PunaError
from puna.infer.engine import Engine, Output, Sampling, TokenLogprob
from puna.infer.scheduler import Scheduler
from puna.infer.text import OutputText

Make = Callable[..., Engine]
WORDS = Sampling(30, temperature=1.0, regex="[a-z]{30}")


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(256, size=length).tolist()


def run(engine: Engine, *requests: int) -> list[Output]:
    """Step until all is done; what the requests got, each as one output."""
    whole = {request: Output(request, [], logprobs=[]) for request in requests}
    while engine.running or engine.waiting:
        for output in engine.step():
            one = whole[output.request]
            one.tokens += output.tokens
            one.text += output.text
            one.logprobs = (one.logprobs or []) + (output.logprobs or [])
            one.prompt_logprobs = output.prompt_logprobs or one.prompt_logprobs
            one.finish, one.cached = output.finish, max(one.cached, output.cached)
    return [whole[request] for request in requests]


def test_steps_give_what_generate_gives(make_engine: Make):
    asked = [Sampling(12), Sampling(9, 1.0, seed=4), Sampling(15, 0.8, top_k=5)]
    engine = make_engine()
    found = run(engine, *(engine.add(prompt(20, i), sampling, number=i) for i, sampling in enumerate(asked)))
    for i, sampling in enumerate(asked):
        assert [[found[i].tokens]] == make_engine().generate([prompt(20, i)], sampling, numbers=[i])
        assert found[i].finish == "length"
        assert found[i].text == engine.tokenizer.decode(found[i].tokens, skip_special=True)
    assert engine.step() == []
    assert engine.free_blocks == engine.total_blocks


def test_text_ends_before_a_stop_string_and_never_shows_a_part_of_it(make_engine: Make):
    engine = make_engine()
    (plain,) = run(engine, engine.add(prompt(5), WORDS))
    assert len(plain.text) == 30
    stop = (plain.text[12:16], plain.text[20:22], "zzzzz")
    engine.add(prompt(5), replace(WORDS, stop=stop))
    shown, finish = "", None
    while finish is None:
        for output in engine.step():
            shown, finish = shown + output.text, output.finish
            assert plain.text[: plain.text.find(stop[0])].startswith(shown)
    assert finish == "stop"
    assert shown == plain.text[: min(place for part in stop if (place := plain.text.find(part)) >= 0)]


def test_text_is_held_back_until_it_is_final(make_engine: Make):
    tokenizer = make_engine().tokenizer
    text = OutputText(tokenizer, ("stop",))
    pushed = [text.push(token) for token in "sé st".encode()]
    assert pushed == ["", "", "sé", " ", "", ""]  # an s may be the beginning of "stop"
    assert text.push(tokenizer.eot_id) == ""
    assert text.push(ord("e")) == "ste"
    assert text.push(0xC3) == ""
    assert text.finish() == "\ufffd"


def test_stop_tokens_end_the_output_unless_they_are_ignored(make_engine: Make):
    engine = make_engine()
    first, second = engine.generate([prompt(8)], Sampling(12))[0][0][:2]
    assert engine.generate([prompt(8)], Sampling(12, stop_ids=(second,)))[0][0] == [first, second]
    engine.tokenizer.stop_ids = [first]
    assert engine.generate([prompt(8)], Sampling(12)) == [[[first]]]
    on = Sampling(12, ignore_stop=True, stop_ids=(second,), stop=("a", "e", "\ufffd"))
    assert len(engine.generate([prompt(8)], on)[0][0]) == 12


def expected(engine: Engine, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [len(ids), vocab] by the model itself, all at once."""
    with torch.no_grad():
        return engine.model(torch.tensor([ids]))[0].log_softmax(-1)


def assert_logprobs(found: Sequence[TokenLogprob | None], ids: Sequence[int], wanted: torch.Tensor, likeliest: int):
    for one, token, row in zip(found, ids, wanted, strict=True):
        assert one is not None
        assert one.token == token
        assert one.logprob == pytest.approx(row[token].item(), abs=1e-5)
        best = row.topk(likeliest)
        assert [token for token, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_log_probabilities_are_the_models_whatever_is_drawn(make_engine: Make):
    engine, ids = make_engine(), prompt(11)
    for sampling in (Sampling(6), Sampling(6, 2.0, top_k=9, logit_bias={3: 5.0})):
        request = engine.add(ids, replace(sampling, logprobs=3))
        (output,) = run(engine, request)
        wanted = expected(engine, ids + output.tokens)
        assert_logprobs(output.logprobs or [], output.tokens, wanted[len(ids) - 1 : -1], 3)
        if sampling.temperature == 0:
            assert all(one.top[0] == (one.token, one.logprob) for one in output.logprobs or [])
    engine.add(ids, Sampling(1, logprobs=0))
    engine.add(ids, Sampling(1))
    first, second = engine.step()
    assert first.logprobs is not None
    assert first.logprobs[0].top == ()
    assert second.logprobs is None


@pytest.mark.parametrize("budget", [30, 1024])
def test_prompt_log_probabilities_come_from_the_cache_the_second_time(make_engine: Make, budget: int):
    engine, ids = make_engine(budget=budget, rows=4), prompt(70)
    wanted = expected(engine, ids)[:-1]
    engine.generate([ids[:40]], Sampling(1))  # known blocks without log-probabilities
    cached = []
    for likeliest in (2, 1, 3):
        (output,) = run(engine, engine.add(ids, Sampling(2, prompt_logprobs=likeliest)))
        assert output.prompt_logprobs is not None
        assert output.prompt_logprobs[0] is None
        assert_logprobs(output.prompt_logprobs[1:], ids[1:], wanted, likeliest)
        cached.append(output.cached)
    assert cached == [0, 48, 0]  # of four known blocks the last is computed again; more are asked for the third time
    longer = ids[:64] + prompt(9, seed=1)
    (output,) = run(engine, engine.add(longer, Sampling(1, prompt_logprobs=1)))
    assert output.cached == 48
    assert_logprobs((output.prompt_logprobs or [])[1:], longer[1:], expected(engine, longer)[:-1], 1)


def test_samples_of_a_prompt_share_its_blocks(make_engine: Make):
    engine = make_engine()
    for i in range(16):
        engine.add(prompt(40), Sampling(8, 1.0), number=i)
    outputs = engine.step()
    assert [output.cached for output in outputs] == [0] + [32] * 15
    assert engine.total_blocks - engine.free_blocks == 2 + 16


def test_a_request_waits_for_what_another_is_computing(make_engine: Make):
    engine = make_engine(budget=50, rows=8)
    for i in range(3):
        engine.add(prompt(200), Sampling(2, 1.0), number=i)
    cached = {}
    steps = 0
    while engine.running or engine.waiting:
        steps += 1
        for output in engine.step():
            cached[output.request] = max(cached.get(output.request, 0), output.cached)
    assert cached == {0: 0, 1: 192, 2: 192}
    assert steps == 4 + 1 + 1  # the first prompt; what the others have of their own; their second token


def test_preempted_requests_end_as_if_nothing_had_happened(make_engine: Make, monkeypatch: pytest.MonkeyPatch):
    preempted = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda self, one: (preempted.append(one.id), preempt(self, one)))
    asked, sampling = [prompt(20 + i, i) for i in range(8)], Sampling(40, 1.0, seed=1)
    scarce = make_engine(blocks=9).generate(asked, sampling)
    assert len(preempted) > 3
    assert scarce == make_engine().generate(asked, sampling)


def test_abort_frees_at_once(make_engine: Make):
    engine = make_engine()
    running, other = engine.add(prompt(100), Sampling(9)), engine.add(prompt(30, 1), Sampling(9))
    engine.step()
    waiting = engine.add(prompt(50, 2), Sampling(9))
    held = engine.free_blocks
    engine.abort(running)
    engine.abort(waiting)
    assert (engine.running, engine.waiting, engine.free_blocks) == (1, 0, held + 7)
    outputs = engine.step()
    assert [(o.request, o.finish) for o in outputs] == [(running, "abort"), (waiting, "abort"), (other, None)]
    engine.abort(running)
    assert [o.request for o in engine.step()] == [other]


def test_a_step_that_fails_is_made_again(make_engine: Make, monkeypatch: pytest.MonkeyPatch):
    engine, wanted = make_engine(), make_engine().generate([prompt(40)], Sampling(6))
    request = engine.add(prompt(40), Sampling(6))
    first = engine.step()[0].tokens
    runner, _ = engine._ready()

    def fail(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(runner, "step", fail)
        with pytest.raises(MemoryError):
            engine.step()
    (rest,) = run(engine, request)
    assert [[first + rest.tokens]] == wanted
    assert rest.cached == 0


def test_an_engine_whose_model_has_changed_forgets(make_engine: Make):
    engine = make_engine()
    with torch.no_grad():
        before = engine.generate([prompt(40)], Sampling(6))
        engine.model.lm_head.weight.neg_()
        engine.forget()
        after = engine.generate([prompt(40)], Sampling(6))
        (output,) = run(engine, engine.add(prompt(40), Sampling(1)))
        engine.model.lm_head.weight.neg_()
        engine.forget()
    assert before != after
    assert output.cached == 32
    assert engine.generate([prompt(40)], Sampling(6)) == before


def test_what_cannot_be_served_is_refused_when_it_is_added(make_engine: Make):
    engine = make_engine(blocks=4)
    with pytest.raises(PunaError, match="need 5 blocks of 16 tokens but the cache has 4"):
        engine.add(prompt(60), Sampling(5))
    with pytest.raises(PunaError, match="token id 272 is outside the vocabulary of 272"):
        engine.add([272], Sampling(5))
    with pytest.raises(PunaError, match="token id -1 is outside"):
        engine.add([5], Sampling(5, logit_bias={-1: 1.0}))
    with pytest.raises(PunaError, match="the engine has no draft model"):
        engine.add([5], Sampling(5, speculate="draft"))
    with pytest.raises(PunaError, match="budget = 8 must exceed rows = 8"):
        make_engine(budget=8, rows=8)
    assert (engine.waiting, engine.free_blocks) == (0, 4)
    wrong: list[dict[str, Any]] = [
        {"top_k": -1}, {"min_p": 1.5}, {"stop": ("",)}, {"stop": "end"}, {"logprobs": -1}, {"prompt_logprobs": 101},
        {"seed": -1}, {"logit_bias": {3: 101.0}}, {"speculate": "yes"}, {"temperature": float("nan")},
    ]  # fmt: skip
    for fields in wrong:
        with pytest.raises(PunaError, match=f"sampling.{next(iter(fields))} = .*: must be"):
            Sampling(**fields)
    with pytest.raises(PunaError, match="exclude each other"):
        Sampling(json_schema="{}", regex="a")
    with pytest.raises(PunaError, match=r"sampling.ignore_stop goes on"):
        Sampling(ignore_stop=True, regex="a")
