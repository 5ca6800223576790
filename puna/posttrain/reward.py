"""Training the reward model (section 4.1.2): from the pretrained checkpoint, on all preferences so far.

A row holds conversations of a prompt and its ranked answers in random order, each of which sees the prompt and itself
only (reward_model.py). Pairs of one prompt and one better answer are one conversation: its prompt is read once. The
loss is Llama 2's without its margin: -log sigmoid(better - worse), over every two answers to a prompt.
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
from puna.model.llama import BRANCH
from puna.model.lora import add_adapters, finish_adapters
from puna.model.weights import load_hf
from puna.posttrain.chats import trained_tokens
from puna.posttrain.preferences import Pair, read_pairs
from puna.posttrain.reward_model import RewardModel, Scorer, branches, save_reward
from puna.recipe import Reward
from puna.run import figure, work_folder
from puna.text.tokenizer import Tokenizer
from puna.train.batches import IGNORE, Batch, pack, rng
from puna.train.launch import World, count_processes, launch
from puna.train.loop import train
from puna.train.losses import whole_or_part


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
        log.message(f"{len(rankings.rankings):,} prompts with ranked answers in {len(rankings.bins):,} rows")
    model = RewardModel.from_language_model(load_hf(base))
    add_adapters(model, knobs.lora, seed, head=True)
    train(model, rankings, Ranking(), knobs, world, work_folder(out), log, "reward model")
    if world.rank == 0:
        finish_adapters(model, knobs.lora, out / "adapter", head=True)
        save_reward(model, tokenizer, out)


Ranked = tuple[list[int], list[tuple[int, list[int]]]]
"""A prompt and its answers, each with its rank: a lower one is better, equal ones are not compared."""


def merge(pairs: Sequence[Pair], room: int) -> list[Ranked]:
    """Pairs as conversations of at most `room` tokens, those of one prompt with the same better answers joined."""
    found: list[Ranked] = []
    latest: dict[str, Ranked] = {}
    for pair in pairs:
        *above, rejected = pair.ranked
        key, worst = str((pair.prompt, above)), (len(above), rejected)
        _, ranked = there = latest.get(key, (pair.prompt, []))
        if worst in ranked:
            continue
        if not ranked or size(there) + len(rejected) > room:
            latest[key] = pair.prompt, [*enumerate(above), worst]
            found.append(latest[key])
        else:
            ranked.append(worst)
    return found


def size(ranked: Ranked) -> int:
    """Tokens of a conversation."""
    return len(ranked[0]) + sum(len(answer) for _, answer in ranked[1])


class Rankings:
    """Preferences as training rows. A label is the rank of the answer that ends at its token; others are IGNORE."""

    def __init__(self, pairs: list[Pair], knobs: Reward, pad_id: int, seed: int) -> None:
        self.rankings = merge(pairs, knobs.seq_len)
        lengths = [size(ranked) for ranked in self.rankings]
        if not pairs or max(lengths) > knobs.seq_len:
            longest = max(lengths, default=0)
            raise PunaError(
                f"{len(pairs)} preferences, the longest of {longest} tokens, reward.seq_len is {knobs.seq_len}; "
                "bring some, or raise it"
            )
        self.seq_len, self.pad_id, self.seed = knobs.seq_len, pad_id, seed
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
                prompt, ranked = self.rankings[which]
                order = rng(self.seed, "answers", epoch, which).permutation(len(ranked))
                ids, numbering, ends = branches(prompt, [ranked[place][1] for place in order])
                here = slice(at, at + len(ids))
                tokens[r, here] = torch.tensor(ids)
                documents[r, here] = conversation + torch.tensor(numbering)
                labels[r, here][ends] = torch.tensor([ranked[place][0] for place in order])
                at += len(ids)
            documents[r, at:] = len(chosen)
        return Batch(tokens, labels, documents)


class Ranking:
    """-log sigmoid(better - worse) over every two answers to a prompt, averaged over the pairs of the step."""

    def counts(self, batch: Batch) -> Tensor:
        return self._better(batch)[1].sum().float()[None]

    def __call__(self, hidden: Tensor, weight: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        ends, better = self._better(batch)
        weight, _ = whole_or_part(weight)
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
        prompt = (batch.documents.flatten()[ends] % BRANCH) + row * batch.labels.shape[1]
        return ends, (prompt[:, None] == prompt) & (ranks[:, None] < ranks)
