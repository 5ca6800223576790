"""The engine against transformers' generate, against itself alone and in batches, and against exact probabilities."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from puna.errors import PunaError
from puna.infer.engine import Engine, Sampling
from puna.infer.sampler import choose, restricted
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names
from puna.train.save import save_model

VOCAB = 256 + 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that has something to say: its logits are far enough apart for greedy choice to be stable."""
    config = replace(PRESETS["1m"], vocab_size=VOCAB, dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64, max_seq_len=64)
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    model = Llama(config).init_weights(torch.Generator().manual_seed(3))
    path = tmp_path_factory.mktemp("model")
    save_model(model, tokenizer, path)
    return path


@pytest.fixture
def engine(directory: Path) -> Engine:
    return Engine.load(directory)


@pytest.fixture
def stopping(engine: Engine) -> Engine:
    """An engine that stops at tokens which do come: those of a fifth of its vocabulary."""
    engine.tokenizer.stop_ids = list(range(0, VOCAB, 5))
    return engine


def prompts(shared: int, lengths: tuple[int, ...] = (1, 9, 4, 4, 17)) -> list[list[int]]:
    """Prompts of random tokens of which the first `shared` are the same."""
    random = np.random.default_rng(6)
    head = random.integers(256, size=shared).tolist()
    return [head + random.integers(256, size=length).tolist() for length in lengths]


@pytest.fixture
def reference(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


@pytest.mark.parametrize("shared", [0, 7])
def test_greedy_is_transformers_generate(stopping: Engine, reference: Any, shared: int):
    wanted, stops = [], stopping.tokenizer.stop_ids
    for prompt in prompts(shared):
        ids = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=20,
            do_sample=False, eos_token_id=stops, pad_token_id=0,
        )  # fmt: skip
        wanted.append([ids[0, len(prompt) :].tolist()])
    found = stopping.generate(prompts(shared), Sampling(20))
    assert found == wanted
    lengths = [len(reply) for (reply,) in found]
    assert 20 in lengths or len(set(lengths)) > 2  # some stopped early
    assert min(lengths) < 20


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shared", [0, 7])
def test_a_batch_is_each_prompt_alone(stopping: Engine, temperature: float, shared: int):
    asked, sampling = prompts(shared), Sampling(20, temperature, top_p=0.9, seed=5)
    together = stopping.generate(asked, sampling, n=3)
    for batch in (1, 2, 4):
        assert stopping.generate(asked, sampling, n=3, batch=batch) == together
    for i, prompt in enumerate(asked):
        for j in range(3):
            assert stopping.generate([prompt], sampling, numbers=[3 * i + j]) == [[together[i][j]]]
    if temperature:
        assert len({tuple(reply) for replies in together for reply in replies}) > 10
    else:
        assert all(replies == replies[:1] * 3 for replies in together)


def test_prompts_that_are_one_anothers_beginning(stopping: Engine):
    long = prompts(0, (12,))[0]
    asked = [long, long[:5], long, long[:11], long[:1]]
    alone = [stopping.generate([prompt], Sampling(8))[0] for prompt in asked]
    assert stopping.generate(asked, Sampling(8)) == alone


def test_the_shared_beginning_runs_once(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    shapes: list[tuple[int, ...]] = []
    hidden = engine.model.hidden

    def spy(tokens: torch.Tensor, *args: object, **more: object) -> torch.Tensor:
        shapes.append(tuple(tokens.shape))
        return hidden(tokens, *args, **more)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(engine.model, "hidden", spy)
    Engine(engine.model, engine.tokenizer, native=False).generate(prompts(32, (3, 2)), Sampling(3))
    # 35 tokens and 2, then one for each; filled up to multiples of four
    assert shapes == [(1, 36 + 4), (1, 4), (1, 4)]


def test_it_ends_at_a_stop_token_or_the_limit(stopping: Engine):
    replies = [reply for replies in stopping.generate(prompts(3), Sampling(7, 1.0), n=8) for reply in replies]
    stops = set(stopping.tokenizer.stop_ids)
    assert not any(stops & set(reply[:-1]) for reply in replies)
    assert all(reply[-1] in stops for reply in replies if len(reply) < 7)
    lengths = {len(reply) for reply in replies}
    assert {1, 7} <= lengths


def test_stream_gives_the_same_tokens_as_they_come(stopping: Engine):
    (prompt,) = prompts(0, (6,))
    for sampling in (Sampling(12), Sampling(12, 1.0, seed=3)):
        stream = stopping.stream(prompt, sampling)
        first = next(stream)
        assert [[[first, *stream]]] == stopping.generate([prompt], sampling)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.6), (2.0, 0.3)])
def test_samples_have_the_exact_probabilities(engine: Engine, temperature: float, top_p: float):
    (prompt,), count = prompts(0, (6,)), 4000
    sampling = Sampling(1, temperature, top_p, seed=2)
    (replies,) = engine.generate([prompt], sampling, n=count, batch=count)
    drawn = Counter(token for (token,) in replies)

    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt]))[0, -1].double().numpy()
    probs = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-probs, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1]  # until the mass reaches top_p
    assert set(drawn) <= set(kept.tolist())
    expected = count * probs / probs[kept].sum()
    common = [token for token in kept.tolist() if expected[token] >= 5]
    cells = [(drawn[token], expected[token]) for token in common]
    rare = [token for token in kept.tolist() if expected[token] < 5]
    if rare:
        cells.append((sum(drawn[token] for token in rare), sum(expected[token] for token in rare)))
    chi_square = sum((n - e) ** 2 / e for n, e in cells)
    freedom = len(cells) - 1
    assert freedom > 5
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_top_p_keeps_the_token_that_crosses_the_limit():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(3000, 1)

    def chosen(top_p: float) -> set[int]:
        uniforms = np.random.default_rng(0).random(len(logits)).tolist()
        return set(choose(logits, [Sampling(1, 1.0, top_p)] * len(logits), uniforms))

    assert chosen(1e-9) == {0}
    assert chosen(0.49) == {0}
    assert chosen(0.51) == {0, 1}
    assert chosen(0.79) == {0, 1}
    assert chosen(0.81) == chosen(1.0) == {0, 1, 2}


def test_seeds_differ(engine: Engine):
    drawn = [engine.generate(prompts(0), Sampling(10, 1.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_log_probs_are_those_of_a_plain_forward(engine: Engine, reference: Any, batch: int):
    texts = prompts(2, (0, 30, 8, 1, 8))
    for text, found in zip(texts, engine.log_probs(texts, batch)):
        with torch.no_grad():
            wanted = reference(torch.tensor([text])).logits[0].log_softmax(-1)
        assert found.shape == (len(text) - 1,)
        assert torch.allclose(found, wanted[range(len(text) - 1), text[1:]], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_generated_is_an_error(engine: Engine, directory: Path):
    with pytest.raises(PunaError, match="a prompt of 50 tokens and max_tokens = 15 exceed the model's 64"):
        engine.generate(prompts(0, (3, 50)), Sampling(15))
    assert len(engine.generate(prompts(0, (3, 50)), Sampling(14))) == 2
    with pytest.raises(PunaError, match="an empty prompt"):
        engine.generate([[1], []], Sampling(5))
    other = Tokenizer({bytes([i]): i for i in range(256)}, special_names(20))
    with pytest.raises(PunaError, match="the tokenizer has 276 entries but the model 272"):
        Engine(engine.model, other)
    for wrong in ({"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(PunaError, match="must be"):
            Sampling(**wrong)  # pyright: ignore[reportArgumentType]
    assert engine.generate([], Sampling(5)) == []


def test_biases_and_masks_reach_their_own_rows():
    logits = torch.zeros(3, 4)
    mask = np.array([True, False, True, True])
    found = restricted(logits, [{}, {1: 2.0, 3: -1.0}, {0: 5.0}], [mask, None, mask])
    inf = float("inf")
    assert found.tolist() == [[0, -inf, 0, 0], [0, 2, 0, -1], [5, -inf, 0, 0]]
    assert not logits.any()
    assert restricted(logits, [{}] * 3, [None] * 3) is logits


@pytest.mark.parametrize("extreme", [{"top_p": 5e-324}, {"temperature": 7e-148}, {"min_p": 1.0}, {"top_p": 1e-30}])
def test_the_smallest_numbers_that_a_client_may_send_choose_the_likeliest(extreme: dict[str, float]):
    logits = torch.tensor([[0.0, 30.0, 29.0, float("-inf")]])
    sampling = Sampling(1, **{"temperature": 1.0, **extreme})  # pyright: ignore[reportArgumentType]
    assert choose(logits, [sampling], [0.999]) == [1]
