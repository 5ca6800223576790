"""Training the reward model (section 4.1.2): from the pretrained checkpoint, on all preferences so far.

A row holds conversations of a prompt and its two or three ranked answers in random order, each of which sees the
prompt and itself only (reward_model.py). The loss is Llama 2's without its margin: -log sigmoid(better - worse), over
every two answers to a prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.errors import PunaError
from puna.log import Log
from puna.model.lora import add_adapters, finish_adapters
from puna.model.weights import load_hf
from puna.posttrain.chats import trained_tokens
from puna.posttrain.preferences import Pair, read_pairs
from puna.posttrain.reward_model import BRANCHES, RewardModel, Scorer, branches, save_reward
from puna.recipe import Reward
from puna.run import figure, work_folder
from puna.text.tokenizer import Tokenizer
from puna.train.batches import IGNORE, Batch, pack, rng
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train


def fit(knobs: Reward, seed: int, base: Path, pairs: Sequence[Path], out: Path, log: Log) -> dict[str, Any]:
    """Pretrained model and files of preferences -> a reward model."""
    launch(_train, count_processes(knobs), knobs, seed, base, list(pairs), out, log)
    return {
        "reward.pairs": figure(len(read_pairs(*pairs))),
        "reward.loss": figure(round(log.last("loss", 20), 4)),
        "reward.tokens": figure(trained_tokens(knobs, log)),
    }


def ranks_right(scorer: Scorer, pairs: Sequence[Pair]) -> np.ndarray:
    """Whether the chosen answer of each pair scores higher than the rejected one, [pairs] bool."""
    if not pairs:
        raise PunaError("there is no held-out pair to measure a reward model with")
    scores = scorer.score_responses([(pair.prompt, [pair.chosen, pair.rejected]) for pair in pairs])
    return np.array([chosen > rejected for chosen, rejected in scores])


def _train(world: World, knobs: Reward, seed: int, base: Path, pairs: list[Path], out: Path, log: Log) -> None:
    tokenizer = Tokenizer.load(base)
    rankings = Rankings(read_pairs(*pairs), knobs, tokenizer.pad_id, seed)
    if world.rank == 0:
        log.message(f"{len(rankings.pairs):,} preferences in {len(rankings.bins):,} rows")
    model = RewardModel.from_language_model(load_hf(base, dtype=torch.float32))
    add_adapters(model, knobs.lora, seed, trained=["score"])
    train(model, rankings, Ranking(), knobs, world, work_folder(out), log, "reward model")
    if world.rank == 0:
        finish_adapters(model, knobs.lora, out / "adapter", trained=["score"])
        save_reward(model, tokenizer, out)


class Rankings:
    """Preferences as training rows. A label is the rank of the answer that ends at its token; others are IGNORE."""

    def __init__(self, pairs: list[Pair], knobs: Reward, pad_id: int, seed: int) -> None:
        lengths = [len(pair.prompt) + sum(map(len, pair.ranked)) for pair in pairs]
        if not pairs or max(lengths) > knobs.seq_len:
            longest = max(lengths, default=0)
            raise PunaError(
                f"{len(pairs)} preferences, the longest of {longest} tokens, reward.seq_len is {knobs.seq_len}; "
                "bring some, or raise it"
            )
        self.pairs, self.seq_len, self.pad_id, self.seed = pairs, knobs.seq_len, pad_id, seed
        self.bins = pack(lengths, knobs.seq_len, rng(seed, "pack rankings"))
        self.orders = [rng(seed, "rankings", epoch).permutation(len(self.bins)) for epoch in range(knobs.epochs)]

    def __len__(self) -> int:
        return len(self.bins) * len(self.orders)

    def rows(self, numbers: Sequence[int]) -> Batch:
        tokens = torch.full((len(numbers), self.seq_len), self.pad_id)
        labels = torch.full((len(numbers), self.seq_len), IGNORE)
        documents = torch.zeros((len(numbers), self.seq_len), dtype=torch.int64)
        for r, number in enumerate(numbers):
            epoch, place = divmod(number, len(self.bins))
            chosen = self.bins[self.orders[epoch][place]]
            at = 0
            for conversation, which in enumerate(chosen):
                pair = self.pairs[which]
                ranks = rng(self.seed, "answers", epoch, which).permutation(len(pair.ranked))
                ids, numbering, ends = branches(pair.prompt, [pair.ranked[rank] for rank in ranks])
                here = slice(at, at + len(ids))
                tokens[r, here] = torch.tensor(ids)
                documents[r, here] = conversation * BRANCHES + torch.tensor(numbering)
                labels[r, here][ends] = torch.from_numpy(ranks)
                at += len(ids)
            documents[r, at:] = len(chosen) * BRANCHES
        return Batch(tokens, labels, documents)


class Ranking:
    """-log sigmoid(better - worse) over every two answers to a prompt, averaged over the pairs of the step."""

    def counts(self, batch: Batch) -> Tensor:
        return self._better(batch)[1].sum().float()[None]

    def __call__(self, hidden: Tensor, weight: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        ends, better = self._better(batch)
        with torch.autocast(hidden.device.type, enabled=False):
            scores = (hidden.flatten(0, 1)[ends].float() @ weight.float().t())[:, 0]
        margins = scores[:, None] - scores[None, :]
        return -(F.logsigmoid(margins) * better).sum() / counts[0].clamp(min=1)

    @staticmethod
    def _better(batch: Batch) -> tuple[Tensor, Tensor]:
        """Places of the answers' ends in the flat batch [n], and which is better than which [n, n] bool."""
        labels = batch.labels.flatten()
        ends = (labels != IGNORE).nonzero()[:, 0]
        ranks = labels[ends]
        row = ends // batch.labels.shape[1]
        prompt = (batch.documents.flatten()[ends] // BRANCHES) + row * batch.labels.shape[1]
        return ends, (prompt[:, None] == prompt) & (ranks[:, None] < ranks)
