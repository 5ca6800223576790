"""Batches: packed rows of tokens, addressed by one global row number.

Row numbers are the whole state of a loader. Row i is the same on one process or on many, so a run resumes exactly
from the number of rows that it has trained on.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from puna.errors import PunaError
from puna.recipe import Pretrain
from puna.recipe.training import Stretch

IGNORE = -100
"""The label of a token that no loss is taken on."""
MOST_SOURCES = 24
"""Where there are more, the loss is told by part alone: these figures go along with every step's."""


@dataclass
class Batch:
    """Rows for one pass through the model."""

    tokens: Tensor
    """[rows, seq_len] int64"""
    labels: Tensor
    """[rows, seq_len] int64: the token that follows, or IGNORE"""
    documents: Tensor
    """[rows, seq_len] int64: which document of its row a token belongs to, and which BRANCH of it (model/llama.py)"""
    scored: Tensor | None = None
    """[rows, seq_len] bool, DPO only: the labels that count for the preference"""
    reference: Tensor | None = None
    """[pairs, 2] fp64, DPO only: log-probability of chosen and rejected under the reference model"""
    sources: Tensor | None = None
    """[rows, seq_len] int64, pretraining only: the number of the source that a token is from"""

    def to(self, device: torch.device) -> "Batch":
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: v.to(device, non_blocking=True) for name, v in values.items() if v is not None})

    def to_last_label(self) -> "Batch":
        """Without the columns after the last label: attention is causal, so no loss depends on them."""
        labelled = (self.labels != IGNORE).any(0).nonzero()
        end = int(labelled[-1]) + 1 if len(labelled) else 1
        values = {name: getattr(self, name) for name in ("tokens", "labels", "documents", "scored", "sources")}
        return replace(self, **{name: v[:, :end].contiguous() for name, v in values.items() if v is not None})


class Batches(Protocol):
    """Something with `len()` rows in training order that makes a batch of any of them."""

    def __len__(self) -> int: ...
    def rows(self, numbers: Sequence[int]) -> Batch: ...


def rows_of_step(step: int, stretches: Sequence[Stretch]) -> tuple[range, int]:
    """The row numbers of a step and the tokens of each row."""
    first = 0
    for stretch in stretches:
        if step < stretch.steps:
            first += step * stretch.batch_rows
            return range(first, first + stretch.batch_rows), stretch.seq_len
        step -= stretch.steps
        first += stretch.steps * stretch.batch_rows
    raise IndexError(f"step {step} after the last one")


def rng(seed: int, *item: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the item's name alone."""
    words = [seed, *(w if isinstance(w, int) else int.from_bytes(w.encode(), "little") for w in item)]
    return np.random.default_rng(words)


@dataclass(frozen=True)
class Blend:
    """A stretch of training rows, and what they are drawn from."""

    rows: int
    mix: dict[str, float]
    """The share of each part."""
    weights: dict[str, float] = field(default_factory=dict)
    """How many times as often as others of its part a document is read, by `COLUMN:NAME`."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring documents of a part that have the same weight: a range of its token file."""

    part: str
    start: int
    rows: int
    weights: tuple[float, ...]
    """In each blend."""


class Shards:
    """Token files of the corpus as training rows, mixed by weights, each piece shuffled by rows in every epoch.

    A row is seq_len tokens and the one after; rows of a part do not overlap, so that no token is trained on twice in
    an epoch. Where `stretches` of the training have shorter rows, such a row is a part of a row of seq_len tokens.
    The blends come one after the other, and the epochs of a document go on through all of them. What would be read
    more than `max_epochs` times is capped and its share goes to the rest of its part, then to other parts; the last
    blend is served first.
    """

    def __init__(
        self,
        folder: Path,
        blends: Sequence[Blend],
        seq_len: int,
        max_epochs: float,
        bos_id: int,
        seed: int,
        stretches: Sequence[Stretch] = (),
    ) -> None:
        self.seq_len, self.bos_id, self.seed = seq_len, bos_id, seed
        self.stretches = stretches
        parts = {part: None for blend in blends for part, share in blend.mix.items() if share > 0}
        self.tokens = {part: read_tokens(folder, part) for part in parts}
        lengths = {part: len(tokens) for part, tokens in self.tokens.items()}
        self.pieces, counts = share_out(folder, lengths, blends, seq_len, max_epochs)
        numbers = np.arange(len(self.pieces), dtype=np.min_scalar_type(len(self.pieces)))
        orders = [np.repeat(numbers, count) for count in counts]
        for number, order in enumerate(orders):
            rng(seed, "mix", *([number] if number else [])).shuffle(order)
        self._piece = np.concatenate(orders)
        # how many rows of the same piece come before row i
        self._nth = np.zeros(len(self._piece), np.int64)
        for number in range(len(self.pieces)):
            here = self._piece == number
            self._nth[here] = np.arange(here.sum())
        self._permutations: dict[tuple[int, int], np.ndarray] = {}
        runs = source_runs(folder, self.tokens)
        self.sources = tuple(dict.fromkeys(name for run in runs.values() for _, name in run))
        """Names of what a batch's `sources` number."""
        self._runs = {
            part: (np.array([start for start, _ in run]), np.array([self.sources.index(name) for _, name in run]))
            for part, run in runs.items()
        }

    def __len__(self) -> int:
        return sum(each.steps * each.batch_rows for each in self.stretches) or len(self._piece)

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each part in the whole of the training."""
        counts = dict.fromkeys(self.tokens, 0)
        for piece, count in zip(self.pieces, np.bincount(self._piece, minlength=len(self.pieces)).tolist()):
            counts[piece.part] += count
        return counts

    def rows(self, numbers: Sequence[int]) -> Batch:
        places = [self._place(i) for i in numbers]
        cut = np.stack([self.tokens[part][start : start + length + 1] for part, start, length in places])
        cut = cut.astype(np.int64)
        tokens, following = cut[:, :-1], cut[:, 1:]
        labels = np.where(following == self.bos_id, IGNORE, following)  # what comes after a document is not text
        documents = np.cumsum(tokens == self.bos_id, axis=1)
        batch = Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (tokens, labels, documents)))
        batch.sources = torch.from_numpy(np.stack([self._sources(*place) for place in places]))
        return batch

    def _sources(self, part: str, start: int, length: int) -> np.ndarray:
        """The number of the source of each token of a row."""
        starts, numbers = self._runs[part]
        if len(numbers) == 1:
            return np.full(length, numbers[0])
        return numbers[np.searchsorted(starts, np.arange(start, start + length), "right") - 1]

    def _place(self, number: int) -> tuple[str, int, int]:
        """Where a row lies: its part, its first token there and its length."""
        number, part, seq_len = place_in(number, self.stretches) if self.stretches else (number, 0, self.seq_len)
        which = int(self._piece[number])
        piece = self.pieces[which]
        epoch, place = divmod(int(self._nth[number]), piece.rows)
        if (which, epoch) not in self._permutations:
            item = ("rows", piece.part, *([piece.start] if piece.start else []), epoch)
            self._permutations[which, epoch] = rng(self.seed, *item).permutation(piece.rows)
        start = piece.start + int(self._permutations[which, epoch][place]) * self.seq_len + part * seq_len
        return piece.part, start, seq_len


def place_in(number: int, stretches: Sequence[Stretch]) -> tuple[int, int, int]:
    """Where a row of a training lies: (the number of a row of the longest length, which part of it, its own length).

    A stretch of shorter rows first takes the first part of all the rows that it divides, then the second, and so on:
    the parts of a row, which are often of one document, are far from each other.
    """
    first = 0
    for each, whole in zip(stretches, whole_rows(stretches)):
        if number < each.steps * each.batch_rows:
            part, place = divmod(number, whole)
            return first + place, part, each.seq_len
        number -= each.steps * each.batch_rows
        first += whole
    raise IndexError("a row after the last one")


def whole_rows(stretches: Sequence[Stretch]) -> list[int]:
    """How many rows of the longest length each stretch takes."""
    longest = stretches[-1].seq_len
    return [-(-each.steps * each.batch_rows * each.seq_len // longest) for each in stretches]


def source_runs(folder: Path, parts: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """Of each part, from which of its tokens on the text is of which source, by what shards.json knows. The sources of
    a part that has several are called PART/SOURCE, the only one of a part as the part."""
    groups = json.loads((folder / "shards.json").read_text()).get("groups", {})
    runs = {}
    for part in parts:
        named = [(group["start"], group.get("source")) for group in groups.get(part) or [{"start": 0}]]
        several = len({source for _, source in named}) > 1
        runs[part] = [(start, f"{part}/{source}" if several else part) for start, source in named]
    if len({name for run in runs.values() for _, name in run}) > MOST_SOURCES:
        return {part: [(0, part)] for part in runs}
    return runs


def blends_of(knobs: Pretrain) -> list[Blend]:
    """The rows of all steps of pretraining: the mix, and after it that of the anneal."""
    rows = sum(whole_rows(knobs.stretches(0)))
    anneal = min(rows, knobs.anneal_tokens // knobs.seq_len)
    last = Blend(anneal, knobs.anneal_mix or knobs.mix, knobs.anneal_weights or knobs.weights)
    return [Blend(rows - anneal, knobs.mix, knobs.weights), *([last] if anneal else [])]


def share_out(
    folder: Path, lengths: dict[str, int], blends: Sequence[Blend], seq_len: int, max_epochs: float
) -> tuple[list[Piece], list[list[int]]]:
    """The pieces of parts of so many tokens, and how many rows each blend takes of each. The last is served first."""
    pieces = cut_pieces(folder, lengths, [blend.weights for blend in blends], seq_len)
    caps = [int(piece.rows * max_epochs) for piece in pieces]
    counts = []
    for number, blend in reversed(list(enumerate(blends))):
        counts.append(share_pieces(blend, number, pieces, caps, max_epochs))
        caps = [cap - count for cap, count in zip(caps, counts[-1])]
    return pieces, counts[::-1]


def cut_pieces(
    folder: Path, lengths: dict[str, int], weightings: Sequence[dict[str, float]], seq_len: int
) -> list[Piece]:
    """Cut the parts, of so many tokens, where a weight changes: `groups` of shards.json says what lies where."""
    groups: dict[str, list[dict[str, Any]]] = json.loads((folder / "shards.json").read_text()).get("groups", {})
    named = (item for part in lengths for group in groups.get(part, []) for item in group.items())
    known = {f"{column}:{name}" for column, name in named if isinstance(name, str)}
    if odd := sorted({key for weights in weightings for key in weights} - known):
        there = ", ".join(sorted(known)) or "no groups"
        raise PunaError(f"pretrain.weights names {odd[0]!r}, which no document of these shards has; there are {there}")
    pieces = []
    for part, length in lengths.items():
        runs: list[tuple[int, tuple[float, ...]]] = []  # where a run of equal weights starts
        for group in groups.get(part, [{"start": 0}]):
            weights = tuple(_weight(group, weighting) for weighting in weightings)
            if not runs or runs[-1][1] != weights:
                runs.append((group["start"], weights))
        for (start, weights), end in zip(runs, [*(start for start, _ in runs[1:]), length]):
            pieces.append(Piece(part, start, max(0, (end - start - 1) // seq_len), weights))
    return pieces


def _weight(group: dict[str, Any], weights: dict[str, float]) -> float:
    return math.prod(weights.get(f"{column}:{name}", 1.0) for column, name in group.items())


def share_pieces(blend: Blend, number: int, pieces: Sequence[Piece], caps: list[int], max_epochs: float) -> list[int]:
    """How many rows of each piece make up the blend, which is the `number`th, none above its cap."""
    caps = [cap if piece.weights[number] else 0 for piece, cap in zip(pieces, caps)]
    shares = {part: share for part, share in blend.mix.items() if share > 0}
    room = {part: sum(cap for piece, cap in zip(pieces, caps) if piece.part == part) for part in shares}
    if sum(room.values()) < blend.rows:
        raise PunaError(
            f"pretrain.tokens asks for {blend.rows:,} rows but pretrain.max_epochs = {max_epochs:g} allows "
            f"{sum(room.values()):,} with this corpus; lower the tokens, raise max_epochs or bring more text"
        )
    counts = [0] * len(pieces)
    for part, rows in zip(shares, share_rows(blend.rows, shares, room)):
        here = [n for n, piece in enumerate(pieces) if piece.part == part and caps[n]]
        inside = {str(n): pieces[n].weights[number] * pieces[n].rows for n in here}
        for n, count in zip(here, share_rows(rows, inside, {str(n): caps[n] for n in here})):
            counts[n] = count
    return counts


def share_rows(rows: int, mix: dict[str, float], cap: dict[str, int]) -> list[int]:
    """How many rows of each name make `rows` in all, near the mix, none above its cap; the caps must allow it."""
    counts = dict.fromkeys(mix, 0)
    open_parts = {part for part in mix if cap[part]}
    while (left := rows - sum(counts.values())) > 0:
        total = sum(mix[part] for part in open_parts)
        grown = {part: min(cap[part], counts[part] + int(left * mix[part] / total)) for part in open_parts}
        if all(grown[part] == counts[part] for part in open_parts):  # less than one row each is left
            part = max(open_parts, key=lambda p: (mix[p], p))
            grown[part] += 1
        counts |= grown
        open_parts = {part for part in open_parts if counts[part] < cap[part]}
    return [counts[part] for part in mix]


def read_tokens(folder: Path, name: str) -> np.ndarray:
    """The token ids of one shard file, memory-mapped."""
    path = folder / f"{name}.bin"
    if not path.exists():
        known = sorted(p.stem for p in folder.glob("*.bin"))
        raise PunaError(f"pretrain.mix names {name!r}, but the corpus has the parts {', '.join(known)}")
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint16)
    return np.memmap(path, dtype=json.loads((folder / "shards.json").read_text())["dtype"], mode="r")


class PackedChats:
    """Tokenised dialogues packed into rows without leakage, for some epochs in a new order each.

    `chats` are pairs of token ids and a mask of the tokens that the model must produce. A chat is never cut: one that
    is longer than a row is left out and counted in `too_long`.
    """

    def __init__(
        self, chats: Iterable[tuple[list[int], list[bool]]], seq_len: int, pad_id: int, epochs: int, seed: int
    ) -> None:
        chats = list(chats)
        self.chats = [chat for chat in chats if len(chat[0]) <= seq_len]
        self.too_long = len(chats) - len(self.chats)
        if not self.chats:
            raise PunaError(f"no chat fits into seq_len = {seq_len} tokens; raise seq_len or bring chats")
        self.seq_len, self.pad_id, self.epochs, self.seed = seq_len, pad_id, epochs, seed
        self.bins = pack([len(ids) for ids, _ in self.chats], seq_len, rng(seed, "pack"))
        self._orders = [rng(seed, "chats", epoch).permutation(len(self.bins)) for epoch in range(epochs)]

    def __len__(self) -> int:
        return len(self.bins) * self.epochs

    def rows(self, numbers: Sequence[int]) -> Batch:
        rows = []
        for number in numbers:
            epoch, place = divmod(number, len(self.bins))
            rows.append([self.chats[i] for i in self.bins[self._orders[epoch][place]]])
        return lay_out(rows, self.seq_len, self.pad_id)


def pack(lengths: Sequence[int], room: int, random: np.random.Generator) -> list[list[int]]:
    """First-fit packing of items, in a random order, into bins of `room`; a bin is closed after 64 newer ones."""
    bins: list[list[int]] = []
    space: list[int] = []
    first = 0
    for item in random.permutation(len(lengths)):
        first = max(first, len(bins) - 64)
        for number in range(first, len(bins)):
            if space[number] >= lengths[item]:
                break
        else:
            number = len(bins)
            bins.append([])
            space.append(room)
        bins[number].append(int(item))
        space[number] -= lengths[item]
    return bins


def lay_out(rows: Sequence[Sequence[tuple[list[int], list[bool]]]], seq_len: int, pad_id: int) -> Batch:
    """Rows of (ids, mask) documents side by side; the padding at the end is a document of its own."""
    tokens = torch.full((len(rows), seq_len), pad_id)
    labels = torch.full((len(rows), seq_len), IGNORE)
    documents = torch.zeros((len(rows), seq_len), dtype=torch.int64)
    for r, row in enumerate(rows):
        at = 0
        for number, (ids, mask) in enumerate(row):
            end = at + len(ids)
            row_ids = torch.tensor(ids)
            tokens[r, at:end] = row_ids
            labels[r, at : end - 1] = torch.where(torch.tensor(mask[1:], dtype=torch.bool), row_ids[1:], IGNORE)
            documents[r, at:end] = number
            at = end
        documents[r, at:] = len(row)
    return Batch(tokens, labels, documents)
