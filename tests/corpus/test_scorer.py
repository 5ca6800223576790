"""The transformer classifier: trained by the ordinary loop, saved as a model, the same alone and in company."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.corpus import quality
from puna.corpus.examples import area_under_curve
from puna.corpus.scorer import Scorer, train_scorer
from puna.errors import PunaError
from puna.log import Log
from puna.model.weights import load_hf
from puna.recipe import Training
from puna.text.tokenizer import Tokenizer

GOOD, BAD = ["theory", "river", "species", "treaty"], ["click", "buy", "bonus", "login"]
OPTIONS = Training(
    seq_len=64, batch_rows=2, micro_rows=2, peak_lr=3e-3, warmup_steps=5, precision="fp32", compile="off", processes=1
)  # pyright: ignore[reportCallIssue]


def text(label: str, seed: int, words: int = 12) -> str:
    pick = random.Random(f"{label} {seed}")
    own = GOOD if label == "1" else BAD
    return " ".join(pick.choice(own if pick.random() < 0.6 else ["the", "of", "and", "a"]) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.train([text(label, seed) for label in "01" for seed in range(20)], 300, 16).save(folder)
    return folder


def make(tokenizer: Path, out: Path, seeds: int = 40, epochs: int = 2, **more) -> None:
    examples = [(label, text(label, seed)) for seed in range(seeds) for label in "01"]
    log = Log(out.parent / "log", "scorer")
    train_scorer(examples, tokenizer, out, OPTIONS, epochs, 0, log, **{"preset": "1m", "max_tokens": 40} | more)


@pytest.fixture(scope="module")
def model(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("model") / "scorer"
    make(tokenizer, out)
    return out


def test_it_tells_texts_apart_that_it_never_saw(model: Path):
    scores = quality.score(str(model), [text(label, seed) for label in "01" for seed in range(1000, 1020)])
    assert area_under_curve(scores, np.arange(40) >= 20) > 0.98
    knobs = quality.Corpus(quality_models={str(model): 0.5})  # pyright: ignore[reportCallIssue]
    good, bad = quality.judge([text("1", 99), text("0", 99)], ["en", "en"], knobs)
    assert (good.reason, bad.reason) == (None, "low-quality")


def test_a_score_depends_on_its_own_text_alone(model: Path):
    scorer = Scorer.load(model)
    texts = ["", text("1", 5), text("0", 6) * 40, "\0 \N{SNOWMAN}", text("1", 7, 3)]
    together = scorer.probabilities(texts)
    assert np.allclose(together.sum(1), 1)
    assert np.array_equal(together, np.concatenate([scorer.probabilities([one]) for one in texts]))
    torch.set_num_threads(2)
    assert np.array_equal(together, scorer.probabilities(texts))
    assert torch.get_num_threads() == 2
    assert scorer.probabilities([]).shape == (0, 2)


def test_a_padded_batch_scores_as_single_texts_do(model: Path):
    scorer = Scorer.load(model)
    ids = [[0, 5, 9, 3], [0, 3], [0, 7, 7, 7, 8, 9, 3]]
    with torch.no_grad():
        alone = torch.cat([scorer._logits([one]) for one in ids])
        assert torch.allclose(scorer._logits(ids), alone, atol=1e-5)


def test_only_the_first_tokens_of_a_text_are_read(model: Path):
    scorer = Scorer.load(model)
    assert scorer.seq_len == 40
    long = text("1", 3, 400)
    assert np.array_equal(scorer.probabilities([long]), scorer.probabilities([long + text("0", 4, 50)]))


def test_it_is_an_ordinary_model_directory_with_a_head(model: Path):
    from transformers import LlamaModel

    scorer = Scorer.load(model)
    assert json.loads((model / "scorer.json").read_text()) == {"labels": ["0", "1"], "seq_len": 40}
    assert load_hf(model).lm_head.weight.shape[0] == scorer.tokenizer.vocab_size
    reference = LlamaModel.from_pretrained(model, dtype=torch.float32).eval()
    ids = scorer.tokenizer.encode(text("1", 8), bos=True, eos=True)
    with torch.no_grad():
        last = reference(torch.tensor([ids])).last_hidden_state[0, -1]
        expected = (last @ scorer.model.lm_head.weight.t()).softmax(-1)
    assert np.allclose(scorer.probabilities([text("1", 8)])[0], expected.numpy(), atol=1e-5)


def test_training_again_gives_the_same_bytes_also_from_a_model(model: Path, tokenizer: Path, tmp_path: Path):
    for name in ("one", "two"):
        make(model, tmp_path / name, seeds=4, epochs=1, preset=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "one", "two"]
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    assert (tmp_path / "one" / "model.safetensors").read_bytes() != (model / "model.safetensors").read_bytes()


def test_what_cannot_be_trained_or_loaded(tokenizer: Path, model: Path, tmp_path: Path):
    log = Log(tmp_path / "log", "scorer")
    with pytest.raises(PunaError, match="two labels at least"):
        train_scorer([("1", "a")], tokenizer, tmp_path / "m", OPTIONS, 1, 0, log)
    with pytest.raises(PunaError, match="no preset '3m'; the presets are 1m"):
        train_scorer([("1", "a"), ("0", "b")], tokenizer, tmp_path / "m", OPTIONS, 1, 0, log, preset="3m")
    with pytest.raises(PunaError, match="no scorer"):
        quality.load_classifier(str(tokenizer))
    (tmp_path / "m").mkdir()
    for path in model.iterdir():
        (tmp_path / "m" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "m" / "scorer.safetensors").write_bytes(b"broken")
    with pytest.raises(PunaError, match="no scorer"):
        quality.load_classifier(str(tmp_path / "m"))
    (tmp_path / "m" / "scorer.safetensors").write_bytes((model / "scorer.safetensors").read_bytes())
    (tmp_path / "m" / "scorer.json").write_text('{"labels": ["a", "b", "c"], "seq_len": 40}')
    with pytest.raises(PunaError, match=r"\[2, 128\] is not \[labels, dim\]"):
        quality.load_classifier(str(tmp_path / "m"))
