"""Bits of held-out text: the model's, a bigram model's against a dictionary, and xz's against the program."""

import itertools
import lzma
import math
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.evals.compression import Bigram, model_bits, training_tokens, xz_bits
from puna.infer.engine import Engine
from puna.model.llama import PRESETS, Llama
from puna.text.tokenizer import Tokenizer
from puna.text.tokenizer_files import special_names


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_names(16))
    config = replace(PRESETS["1m"], vocab_size=272, dim=32, layers=2, heads=2, kv_heads=1, ffn_dim=64)
    return Engine(Llama(config).init_weights(torch.Generator().manual_seed(3)), tokenizer)


def documents(*lengths: int) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(256, size=length).tolist() for length in lengths]


def bits_of(engine: Engine, ids: list[int], first: int = 1) -> float:
    """Bits of ids[first:] in one forward pass."""
    with torch.no_grad():
        log_probs = engine.model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(-log_probs[i - 1, ids[i]].item() / math.log(2) for i in range(first, len(ids)))


def test_documents_of_one_window_are_computed_whole(engine: Engine):
    texts = documents(20, 2, 1, 7, 20)
    assert model_bits(engine, texts, 20) == pytest.approx([bits_of(engine, ids) for ids in texts], rel=1e-6)


@pytest.mark.parametrize("window", [8, 9])
def test_overlapping_windows_count_every_token_once(engine: Engine, window: int):
    step = window // 2
    texts = documents(*range(1, 40))
    for ids, found in zip(texts, model_bits(engine, texts, window)):
        wanted, counted = bits_of(engine, ids[:window]), min(window, len(ids))
        for start in range(step, len(ids), step):
            piece = ids[start : start + window]
            if start + len(piece) > counted:
                wanted += bits_of(engine, piece, counted - start)
                counted = start + len(piece)
        assert counted == len(ids)
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_a_uniform_model_costs_the_same_for_every_token(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        engine, "log_probs", lambda rows, batch: [torch.full((len(r) - 1,), -math.log(2)) for r in rows]
    )
    for window in (4, 5, 6, 7):
        assert model_bits(engine, documents(*range(1, 60)), window).tolist() == pytest.approx(list(range(59)))


# -- bigram --


def plain_bits(tokens: list[int], vocab: int, ids: list[int], k: float) -> float:
    once, first, twice = Counter(tokens), Counter(tokens[:-1]), Counter(itertools.pairwise(tokens))
    bits = 0.0
    for a, b in itertools.pairwise(ids):
        unigram = (once[b] + 1) / (len(tokens) + vocab)
        bits -= math.log2((twice[a, b] + k * unigram) / (first[a] + k))
    return bits


def test_bigram_is_a_dictionary_of_counts():
    random = np.random.default_rng(6)
    tokens = random.zipf(1.5, 3000).clip(max=49).astype(np.uint16)
    bigram = Bigram(tokens, 50)
    held_out = [random.zipf(1.5, length).clip(max=49).tolist() for length in (2, 30, 400)] + [[49, 0, 48, 0]]
    for ids in held_out:
        for k in (0.5, 30):
            assert bigram.bits(ids, k) == pytest.approx(plain_bits(tokens.tolist(), 50, ids, k))
    best = bigram.best_bits(held_out).sum()
    assert best == pytest.approx(
        min(sum(bigram.bits(ids, k) for ids in held_out) for k in (10, 30, 100, 300, 1000, 3000))
    )


def test_bigram_probabilities_sum_to_one():
    tokens = np.array([0, 1, 2, 0, 1, 0, 3, 3, 1, 4])  # the last one is followed by nothing, 5 never occurs
    bigram = Bigram(tokens, 6)
    for a in range(6):
        assert sum(2 ** -bigram.bits([a, b], 2.0) for b in range(6)) == pytest.approx(1)


def test_training_tokens_are_all_parts(tmp_path: Path):
    for name, ids in {"a": [1, 2], "b": [60_000], "c": [9]}.items():
        np.array(ids, np.uint16).tofile(tmp_path / f"{name}.bin")
    assert training_tokens(tmp_path, ["b", "a"], "uint16").tolist() == [60_000, 1, 2]


# -- xz --


def test_xz_is_the_program_with_9(tmp_path: Path):
    texts = [Path(__file__).read_bytes(), b"second text " * 50]
    (tmp_path / "all").write_bytes(b"\n".join(texts))
    if shutil.which("xz") is None:
        pytest.skip("needs the program xz")
    program = subprocess.run(["xz", "-9", "--stdout", str(tmp_path / "all")], capture_output=True, check=True).stdout
    assert abs(xz_bits(texts) / 8 - len(program)) <= 8


def test_xz_compresses_texts_together():
    text = Path(__file__).read_bytes()
    assert xz_bits([text]) == 8 * len(lzma.compress(text, preset=9))
    assert xz_bits([text] * 20) < 1.2 * xz_bits([text])
