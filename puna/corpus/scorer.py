"""A small transformer that scores documents, distilled from the labels of a larger model (section 3.1.1).

It is a Llama whose output matrix has a row for each label instead of each token, read where the text ends. Training is
therefore ordinary finetuning: the label is the one token to produce after `text <|end_of_text|>`. Where the paper
trains DistilRoBERTa (82M parameters, bidirectional), this starts from a preset or, better, from a pretrained model.

    an ordinary model directory    the body with its tokenizer; the output matrix is the embedding, which nothing reads
    scorer.safetensors             `score.weight` [labels, dim]
    scorer.json                    the labels and the longest text in tokens
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from puna.corpus.quality import order_labels
from puna.errors import PunaError
from puna.log import Log
from puna.model.llama import PRESETS, Llama
from puna.model.weights import load_hf
from puna.recipe import Training
from puna.text.tokenizer import Tokenizer
from puna.train.batches import PackedChats
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train
from puna.train.losses import NextToken
from puna.train.save import save_model

GPU_ROWS = 64
"""Texts that go through the model at once on a GPU. On a CPU it is one: as fast, and its score then depends on no
other text."""


class Scorer:
    """A classifier as quality.py wants it: `labels` and `probabilities(texts)`. Texts are cut at `seq_len` tokens."""

    def __init__(self, model: Llama, tokenizer: Tokenizer, labels: list[str], seq_len: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.tokenizer, self.labels, self.seq_len = tokenizer, labels, seq_len

    @classmethod
    def load(cls, directory: Path) -> Self:
        """PunaError where the directory holds no scorer."""
        try:
            about = json.loads((directory / "scorer.json").read_text(encoding="utf-8"))
            head = load_file(directory / "scorer.safetensors")["score.weight"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise PunaError(f"{directory}: no scorer ({error}); `puna corpus train` makes one") from error
        model = with_head(load_hf(directory, torch.float32), len(about["labels"]))
        if head.shape != model.lm_head.weight.shape:
            raise PunaError(f"{directory}/scorer.safetensors: {list(head.shape)} is not [labels, dim] of this model")
        model.lm_head.weight = nn.Parameter(head)
        return cls(model, Tokenizer.load(directory), about["labels"], about["seq_len"])

    def save(self, directory: Path) -> None:
        body = Llama(self.model.config)
        state = self.model.state_dict()
        body.load_state_dict(state | {"lm_head.weight": state["embed_tokens.weight"]})
        save_model(body, self.tokenizer, directory, chat=False)
        save_file({"score.weight": self.model.lm_head.weight.detach().cpu()}, directory / "scorer.safetensors")
        about = {"labels": self.labels, "seq_len": self.seq_len}
        (directory / "scorer.json").write_text(json.dumps(about) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, labels] float32. One thread, so that the result is the same in any number of processes."""
        values = np.zeros((len(texts), len(self.labels)), np.float32)
        rows = GPU_ROWS if self.device.type == "cuda" else 1
        with _one_thread():
            for start in range(0, len(texts), rows):
                ids = [encode(text, self.tokenizer, self.seq_len) for text in texts[start : start + rows]]
                values[start : start + rows] = self._logits(ids).float().softmax(-1).cpu().numpy()
        return values

    def _logits(self, ids: list[list[int]]) -> torch.Tensor:
        """[texts, labels]. Padding comes last, where no token of a causal model sees it."""
        tokens = torch.full((len(ids), max(map(len, ids))), self.tokenizer.pad_id)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = torch.tensor(one)
        hidden = self.model.hidden(tokens.to(self.device))  # [texts, tokens, dim]
        ends = torch.tensor([len(one) - 1 for one in ids], device=self.device)
        return self.model.lm_head(hidden[torch.arange(len(ids), device=self.device), ends])


def with_head(model: Llama, labels: int) -> Llama:
    """The model with an output matrix of zeros for `labels` labels: at first all are equally likely."""
    model.lm_head = nn.Linear(model.config.dim, labels, bias=False)
    nn.init.zeros_(model.lm_head.weight)
    return model


def encode(text: str, tokenizer: Tokenizer, seq_len: int) -> list[int]:
    """begin_of_text, as much of the text as fits, end_of_text: at most `seq_len` ids."""
    ids = tokenizer.encode(text[: 16 * seq_len])[: seq_len - 2]
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]


def train_scorer(
    examples: Sequence[tuple[str, str]], start: Path, out: Path, options: Training, epochs: int, seed: int, log: Log,
    preset: str | None = None, max_tokens: int | None = None,
) -> None:  # fmt: skip
    """Train on (label, text) pairs and write the directory `out`. Killed, the same call goes on where it was.

    `start`: a model directory to begin with; with a `preset` its tokenizer only, and weights are drawn anew.
    `max_tokens`: where texts are cut, `options.seq_len` - 1 by default. PunaError for fewer than two labels.
    """
    labels = order_labels({label for label, _ in examples})
    if len(labels) < 2:
        raise PunaError(f"a classifier needs examples of two labels at least, not of {labels}")
    if preset and preset not in PRESETS:
        raise PunaError(f"there is no preset {preset!r}; the presets are {', '.join(PRESETS)}")
    longest = min(max_tokens or options.seq_len, options.seq_len - 1)  # the label takes a place in the row
    cause = json.dumps([list(examples), str(start), options.model_dump(), epochs, seed, preset, longest])
    work = out.with_name(f".{out.name}-{hashlib.sha256(cause.encode()).hexdigest()[:12]}")
    arguments = (list(examples), labels, start, preset, work, options, epochs, seed, longest, log)
    launch(_train, count_processes(options), *arguments)
    (work / "out").replace(out)
    shutil.rmtree(work)


def _train(
    world: World, examples: list[tuple[str, str]], labels: list[str], start: Path, preset: str | None, work: Path,
    options: Training, epochs: int, seed: int, longest: int, log: Log,
) -> None:  # fmt: skip
    tokenizer = Tokenizer.load(start)
    if preset:
        model = Llama(replace(PRESETS[preset], vocab_size=tokenizer.vocab_size))
        model.init_weights(torch.Generator().manual_seed(seed))
    else:
        model = load_hf(start, torch.float32)
    with_head(model, len(labels))
    texts = [[*encode(text, tokenizer, longest), labels.index(label)] for label, text in examples]
    answers = [(ids, [False] * (len(ids) - 1) + [True]) for ids in texts]
    batches = PackedChats(answers, options.seq_len, tokenizer.pad_id, epochs, seed)
    train(model, batches, NextToken(), options, world, work, log, "scorer")
    if world.rank == 0:
        Scorer(model, tokenizer, labels, longest).save(work / "out")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
