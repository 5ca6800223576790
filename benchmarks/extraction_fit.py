"""Fit the weights of puna/corpus/extract/network.py on the development pages, and write weights.json.

    python benchmarks/extraction_fit.py ../shared/data/web_html                             # some minutes on one core
    python benchmarks/extraction_fit.py ../shared/data/web_html --folds 5 --out folds       # for extraction.py

Pages: WCXB's development split, scrapinghub's article benchmark, Mozilla's readability tests and trafilatura's
evaluation, whose pages have marked segments only. No text of a page goes into the weights file: it holds words that at
least 12 domains use, and numbers.
"""

import argparse
import base64
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from extraction import Sample, load, read_lines
from extraction_labels import TOKEN, label, label_segments
from resiliparse.parse.html import HTMLTree
from torch import Tensor, nn
from torch.nn import functional as F

from puna.corpus.extract import network
from puna.corpus.extract.blocks import Block, read_blocks
from puna.corpus.extract.features import alike, enclosing, measure, numbers, opening, told
from puna.corpus.extract.markup import WORD, Markup, head_and_body
from puna.corpus.extract.metadata import Claims, find_claims, find_title, metas

TAGS = (
    "nav footer header aside article main section ul ol li dl dt dd p h1 h2 h3 h4 h5 h6 table tr td th form pre code"
    " blockquote figure figcaption address details summary label a b i em strong span div img center font time small"
    " noscript button dialog template"
)
VALUE = re.compile(r' (?:class|id|role|itemprop)="([^"]+)"')
FITTED_ON = (
    "the development pages of WCXB, scrapinghub's article-extraction-benchmark, Mozilla's readability tests and"
    " trafilatura's evaluation"
)
MIN_DOMAINS = 12
HINTS, OPENINGS = 160, 128
"""Words chosen, of attributes and of the beginnings of blocks."""
WIDTH, DEPTH, BATCH, MAX_BLOCKS = 32, 5, 12, 1000
GAP = 2 ** (DEPTH - 1)
DROPPED, DROPPED_BITS, DROPPED_OPENINGS = 0.2, 0.3, 0.15
"""Shares of a page's channels and bits left out while fitting; of pages that lose all openings, as if in another
language."""
ARTICLE_WEIGHT = 8.0
"""Of a page of the article benchmark, of which there are few."""


class Bag:
    """The bit sets of a page's blocks: the distinct ones, packed, [sets, bytes], and which is whose [blocks]."""

    def __init__(self, sets: list[bytes], bits: int) -> None:
        known = {value: i for i, value in enumerate(dict.fromkeys(sets))}
        self.packed = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
        self.which = np.array([known[value] for value in sets])
        self.bits = bits

    @property
    def sets(self) -> np.ndarray:
        """[sets, bits] of 0 and 1."""
        return np.unpackbits(self.packed, axis=1, count=self.bits, bitorder="little")

    def tally(self, weight: np.ndarray) -> np.ndarray:
        """[bits, n] what the blocks with a bit weigh, by weight [blocks, n]."""
        whole = np.zeros((len(self.packed), weight.shape[1]), np.float32)
        np.add.at(whole, self.which, weight)
        return self.sets.T.astype(np.float32) @ whole


@dataclass
class Example:
    sample: Sample
    numbers: np.ndarray
    """[blocks, features]"""
    bags: list[Bag]
    """Of hints, near and openings."""
    labels: np.ndarray
    """[blocks] share of the words that are content, NaN where unknown."""
    words: np.ndarray
    """[blocks] their number."""

    @cached_property
    def weight(self) -> np.ndarray:
        """[blocks, 2] of blocks that are not content, and of those that are; 1 together."""
        root, content = np.sqrt(self.words), np.nan_to_num(self.labels) > 0.5
        return np.stack([root * ~content, root * content], 1) / max(1, root.sum())

    @cached_property
    def tallies(self) -> list[np.ndarray]:
        """Of each bag, by bit."""
        return [bag.tally(self.weight) for bag in self.bags]


def load_more(folder: Path) -> list[tuple[Sample, dict | None]]:
    """Pages of other sets: with gold text, or with marked segments."""
    from lxml.html import fromstring

    more: list[tuple[Sample, dict | None]] = []
    for row in read_lines(folder / "mozilla_readability.jsonl.xz"):
        if row["html"] and row["gold_html"]:
            gold = str(fromstring(row["gold_html"]).text_content())
            more.append((Sample(f"http://{row['id']}.moz/", "readability", row["html"], gold), None))
    for row in read_lines(folder / "trafilatura_eval.jsonl.xz"):
        if row.get("html"):
            more.append((Sample(row["url"], "segments", row["html"], ""), row["annotations"]))
    return more


def examples(folder: Path) -> tuple[list[Example], list[str], list[str]]:
    """The pages; the tags and words of attributes, and the words that blocks begin with, by their bits."""
    pages = [(s, None) for s in load(folder) if TOKEN.search(s.gold)] + load_more(folder)
    trees = [HTMLTree.parse(sample.html) for sample, _ in pages]
    written = [str(tree) for tree in trees]
    parts = [head_and_body(page) for page in written]
    domains = [sample.domain for sample, _ in pages]
    described = [
        {word.lower() for value in set(VALUE.findall(body)) for word in WORD.findall(value)} for _, body in parts
    ]
    first = [f"<{tag}" for tag in TAGS.split()] + ["hidden"]
    words = first + [word for word in frequent(described, domains) if len(word) > 1 and word not in first]
    markup = Markup({word: bit for bit, word in enumerate(words)})
    read = [read_blocks(body, markup) for _, body in parts]
    begun = frequent([{word for block in blocks for word in opening(block.text)} for blocks, _ in read], domains)
    found = []
    for (sample, segments), tree, page, (head, _), (blocks, containers) in zip(pages, trees, written, parts, read):
        if blocks:
            values = metas(head)
            claims = find_claims(page, find_title(tree.title or "", values), values)
            found.append(example(sample, segments, claims, blocks, containers, words, begun))
    return found, words, begun


def frequent(sets: list[set[str]], domains: list[str]) -> list[str]:
    """The words that pages of MIN_DOMAINS domains have."""
    users: dict[str, set[str]] = defaultdict(set)
    for words, name in zip(sets, domains):
        for word in words:
            users[word].add(name)
    return sorted(word for word, names in users.items() if len(names) >= MIN_DOMAINS)


def example(
    sample: Sample, segments: dict | None, claims: Claims, blocks: list[Block], containers: np.ndarray,
    words: list[str], begun: list[str],
) -> Example:  # fmt: skip
    texts = [block.text for block in blocks]
    labels, count = label(texts, sample.gold) if segments is None else label_segments(texts, segments)
    rows, opened = measure(blocks, claims.title, {word: bit for bit, word in enumerate(begun)})
    bags = [Bag([block.hints for block in blocks], len(words)), Bag([block.near for block in blocks], len(words))]
    inputs = numbers(rows, alike(blocks, containers), containers, enclosing(containers))
    inputs = np.concatenate([inputs, told(blocks, claims)], 1)
    return Example(sample, inputs, [*bags, Bag([row.tobytes() for row in opened], len(begun))], labels, count)


def information(pages: list[Example], bag: int) -> np.ndarray:
    """[bits] what each bit tells about being content, in nats a block; 0 for bits of few pages."""
    total = np.stack([page.weight.sum(0) for page in pages]).sum(0, np.float64)
    inside = np.stack([page.tallies[bag] for page in pages]).sum(0, np.float64)
    seen = np.stack([(page.tallies[bag] > 0).any(1) for page in pages]).sum(0)

    def entropy(counts: np.ndarray) -> np.ndarray:
        share = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9)
        return -(share * np.log(share + 1e-12)).sum(-1)

    outside = total - inside
    left = inside.sum(1) * entropy(inside) + outside.sum(1) * entropy(outside)
    return np.where(seen >= MIN_DOMAINS, entropy(total) - left / total.sum(), 0)


def best(scores: np.ndarray, count: int) -> list[int]:
    return sorted(np.argsort(-scores)[:count].tolist())


@dataclass
class Inputs:
    """A page as the network sees it."""

    numbers: Tensor
    """[blocks, features]"""
    bags: list[tuple[Tensor, Tensor]]
    """Of hints, near and openings: the distinct sets [sets, bits], and which is whose [blocks]."""
    labels: Tensor
    words: Tensor
    weight: float

    def part(self, random: np.random.Generator) -> "Inputs":
        """MAX_BLOCKS of a longer page, from a random place."""
        start = int(random.integers(0, max(1, len(self.labels) - MAX_BLOCKS)))
        cut = slice(start, start + MAX_BLOCKS)
        bags = [(sets, which[cut]) for sets, which in self.bags]
        return Inputs(self.numbers[cut], bags, self.labels[cut], self.words[cut], self.weight)


def inputs(page: Example, scaled: np.ndarray, bits: list[list[int]]) -> Inputs:
    """`bits`: those chosen of each bag."""
    chosen = [bag.sets[:, columns].astype(np.float32) for bag, columns in zip(page.bags, bits)]
    return Inputs(
        torch.from_numpy(scaled),
        [(torch.from_numpy(sets), torch.from_numpy(bag.which)) for sets, bag in zip(chosen, page.bags)],
        torch.from_numpy(np.nan_to_num(page.labels)),
        torch.from_numpy(np.where(np.isnan(page.labels), 0, page.words)),
        ARTICLE_WEIGHT if page.sample.kind == "benchmark article" else 1.0,
    )


class Batch:
    """Pages one after the other, with GAP empty rows around each, across which no convolution sees."""

    def __init__(self, pages: list[Inputs]) -> None:
        lengths = [rows for page in pages for rows in (GAP, len(page.labels))] + [GAP]
        self.pages, self.rows = pages, sum(lengths)
        ends = np.cumsum(lengths)[1::2].tolist()
        self.spans = [slice(end - len(page.labels), end) for page, end in zip(pages, ends)]
        """The rows of each page."""
        owners = torch.arange(1, len(lengths) + 1) // 2 * (torch.arange(len(lengths)) % 2)
        self.owner = torch.repeat_interleave(owners, torch.tensor(lengths))
        """[rows] number of the page, from 1; 0 between pages."""

    def rowwise(self, parts: list[Tensor]) -> Tensor:
        """[rows, ...] of what each page has for its blocks."""
        whole = parts[0].new_zeros(self.rows, *parts[0].shape[1:])
        for span, part in zip(self.spans, parts):
            whole[span] = part
        return whole

    def bag(self, number: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The sets of all pages, of which each page keeps its bits in `kept` [pages, bits], and which is whose."""
        sets = [page.bags[number][0] * bits for page, bits in zip(self.pages, kept)]
        starts = np.cumsum([0, *map(len, sets[:-1])]).tolist()
        return torch.cat(sets), self.rowwise([page.bags[number][1] + at for page, at in zip(self.pages, starts)])

    def sums(self, values: Tensor) -> Tensor:
        """[pages] from [rows]."""
        return values.new_zeros(len(self.pages) + 1).index_add(0, self.owner, values)[1:]


class Net(nn.Module):
    """The network of puna/corpus/extract/network.py, while it learns. Dropped are whole channels of a page, and bits of
    a page, so that no single word decides."""

    def __init__(self, features: int, bits: list[int]) -> None:
        super().__init__()
        self.first = nn.Linear(features + sum(bits), WIDTH)
        self.parts = [features, *bits]
        self.conv = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3) for _ in range(DEPTH))
        self.page = nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [rows]."""
        plain, *bagged = self.first.weight.T.split(self.parts)
        state = torch.addmm(self.first.bias, batch.rowwise([page.numbers for page in batch.pages]), plain)
        for number, weight in enumerate(bagged):
            kept = torch.rand(len(batch.pages), len(weight)) > DROPPED_BITS
            if number == len(bagged) - 1:
                kept &= torch.rand(len(batch.pages), 1) > DROPPED_OPENINGS
            sets, which = batch.bag(number, kept.float())
            state = state + (sets @ weight)[which]
        state = torch.relu(state) * self.dropped(batch)
        for i, conv in enumerate(self.conv):
            near, (before, here, after) = 2**i, conv.weight.permute(2, 1, 0)  # pyright: ignore[reportCallIssue]
            padded = F.pad(state, (0, 0, near, near))
            seen = torch.addmm(conv.bias, padded[: -2 * near], before).addmm_(state, here)  # pyright: ignore
            state = torch.addcmul(state, seen.addmm_(padded[2 * near :], after).relu_(), self.dropped(batch))
            if i == DEPTH // 2:
                whole = [torch.cat([state[span].mean(0), state[span].amax(0)]) for span in batch.spans]
                told = torch.relu(self.page(torch.stack(whole)))
                state = state + F.pad(told, (0, 0, 1, 0))[batch.owner]
        return self.last(state)[:, 0]

    @staticmethod
    def dropped(batch: Batch) -> Tensor:
        """[rows, WIDTH] what to multiply with: 0 between pages and for the channels that a page loses."""
        kept = (torch.rand(len(batch.pages), WIDTH) > DROPPED).float() / (1 - DROPPED)
        return F.pad(kept, (0, 0, 1, 0))[batch.owner]


def loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross entropy, a block weighing the root of its words, and 1 - F1 with probabilities for counts; both by page."""
    labels, words = (batch.rowwise([getattr(page, name) for page in batch.pages]) for name in ("labels", "words"))
    root = words.sqrt()
    entropy = batch.sums(F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * root)
    kept, content = torch.sigmoid(logits) * words, labels * words
    f1 = 2 * batch.sums(kept * labels) / (batch.sums(kept) + batch.sums(content)).clamp(min=1)
    weight = torch.tensor([page.weight for page in batch.pages])
    return ((entropy / batch.sums(root).clamp(min=1) + 1 - f1) * weight).mean()


def fit(pages: list[Inputs], epochs: int, seed: int = 0, rate: float = 3e-3) -> Net:
    """Returns the average of the weights over the last steps. Pages of like length share a batch."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = Net(pages[0].numbers.shape[1], [sets.shape[1] for sets, _ in pages[0].bags])
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    steps, step = epochs * math.ceil(len(pages) / BATCH), 0
    for epoch in range(epochs):
        order = sorted(pages, key=lambda page: min(len(page.labels), MAX_BLOCKS) * random.uniform(0.7, 1.4))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        total = 0.0
        for number in random.permutation(len(batches)):
            step += 1
            optimizer.param_groups[0]["lr"] = rate * min(1, step / 50) * max(0.02, 1 - step / (steps + 60))
            batch = Batch([page.part(random) for page in batches[number]])
            error = loss(net(batch), batch)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            total += error.item()
            decay = min(0.995, step / (step + 20))
            for name, value in net.state_dict().items():
                average[name].mul_(decay).add_(value, alpha=1 - decay)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(batches):.4f}", flush=True)
    net.load_state_dict(average)
    return net


def fit_weights(
    pages: list[Example], words: list[str], begun: list[str], epochs: int, fitted_on: str, path: Path
) -> None:
    """Choose words, fit, and write the weights to `path`."""
    score = information(pages, 0) + information(pages, 1)
    hints = best(score + [word.startswith("<") for word in words], HINTS)  # all tags first
    openings = best(information(pages, 2), OPENINGS)
    rows = np.concatenate([page.numbers for page in pages])
    mean, scale = rows.mean(0), rows.std(0) + 1e-3
    net = fit([inputs(page, (page.numbers - mean) / scale, [hints, hints, openings]) for page in pages], epochs)
    vocabulary, opened = [words[bit] for bit in hints], [begun[bit] for bit in openings]
    save(net, torch.from_numpy(mean), torch.from_numpy(scale), vocabulary, opened, fitted_on, path)


def save(
    net: Net, mean: Tensor, scale: Tensor, vocabulary: list[str], openings: list[str], fitted_on: str, path: Path
) -> None:
    """Half precision, the scale of the numbers folded into the first layer."""
    features, size = len(mean), len(vocabulary)
    weight, bias = net.first.weight.detach().clone(), net.first.bias.detach().clone()
    bias -= (weight[:, :features] * (mean / scale)).sum(1)
    weight[:, :features] /= scale
    convolutions = [conv for conv in net.conv if isinstance(conv, nn.Conv1d)]
    layers = {
        "numbers": weight[:, :features].T,
        "hints": weight[:, features : features + size].T,
        "near": weight[:, features + size : features + 2 * size].T,
        "openings": weight[:, features + 2 * size :].T,
        "first_bias": bias,
        "conv": torch.stack([conv.weight.permute(2, 1, 0) for conv in convolutions]),
        "conv_bias": torch.stack([conv.bias for conv in convolutions if conv.bias is not None]),
        "page": net.page.weight.T,
        "page_bias": net.page.bias,
        "last": net.last.weight[0],
        "last_bias": net.last.bias,
    }
    arrays = {name: layer.detach().contiguous().numpy().astype("<f2") for name, layer in layers.items()}
    saved = {
        "fitted_on": fitted_on,
        "vocabulary": vocabulary,
        "openings": openings,
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "layers": {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()},
    }
    path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the development pages")
    parser.add_argument("--out", type=Path, default=Path(network.__file__).with_name("weights.json"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--folds", type=int, default=0, help="fit without each fold of the pages; --out is then a folder"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pages, words, begun = examples(arguments.folder)
    if not arguments.folds:
        fit_weights(pages, words, begun, arguments.epochs, FITTED_ON, arguments.out)
    for fold in range(arguments.folds):
        others = [page for page in pages if page.sample.fold(arguments.folds) != fold]
        fitted_on = f"all but fold {fold} of {arguments.folds}, by the hash of the domain, of {FITTED_ON}"
        arguments.out.mkdir(parents=True, exist_ok=True)
        fit_weights(others, words, begun, arguments.epochs, fitted_on, arguments.out / f"fold{fold}.json")


if __name__ == "__main__":
    main()
