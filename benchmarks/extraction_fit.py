"""Fit the weights of puna/corpus/extract/network.py on the development pages, and write weights.json.

    python benchmarks/extraction_fit.py ../shared/data/web_html                             # some minutes on one core
    python benchmarks/extraction_fit.py ../shared/data/web_html --half 0 --out half0.json   # to be tested on half 1

Pages: WCXB's development split, scrapinghub's article benchmark, Mozilla's readability tests and trafilatura's
evaluation, whose pages have marked segments only. No text of a page goes into the weights file: it holds words that at
least 12 domains use, and numbers.
"""

import argparse
import base64
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from extraction import Sample, domain, load, read_lines
from resiliparse.parse.html import HTMLTree
from torch import Tensor, nn
from torch.nn import functional as F

from puna.corpus.extract import network
from puna.corpus.extract.blocks import Block, read_blocks
from puna.corpus.extract.features import alike, enclosing, measure, numbers, opening
from puna.corpus.extract.markup import WORD, Markup, head_and_body

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
TOKEN = re.compile(r"\w+")
MIN_DOMAINS = 12
HINTS, OPENINGS = 160, 128
"""Words chosen, of attributes and of the beginnings of blocks."""
WIDTH, DEPTH, BATCH, MAX_BLOCKS = 32, 5, 12, 1500
DROPPED_BITS, DROPPED_OPENINGS = 0.3, 0.15
"""Shares of a page's bits left out while fitting; of pages that lose all openings, as if in another language."""
ARTICLE_WEIGHT = 8.0
"""Of a page of the article benchmark, of which there are few."""


@dataclass
class Example:
    sample: Sample
    blocks: list[Block]
    containers: np.ndarray
    title: str
    labels: np.ndarray
    """[blocks] share of the words that are content, NaN where unknown."""
    words: np.ndarray
    """[blocks] their number."""


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text.lower())


def label(texts: list[str], gold: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each block, the share of words within a 3-gram of the gold text, across the borders of blocks. Of blocks that
    repeat, only as many count as the gold text has: those whose neighbours are content too."""
    lists = [tokens(text) for text in texts]
    flat, said = [word for words in lists for word in words], tokens(gold)
    grams = set(zip(said, said[1:], said[2:]))
    covered = np.zeros(len(flat), bool)
    for i, gram in enumerate(zip(flat, flat[1:], flat[2:])):
        if gram in grams:
            covered[i : i + 3] = True
    count = np.array([len(words) for words in lists], np.float32)
    ends = np.cumsum(count).astype(int)
    sums = np.concatenate([[0], np.cumsum(covered)])
    labels = (sums[ends] - sums[ends - count.astype(int)]) / np.where(count, count, np.nan)
    _drop_repeats(lists, labels.copy(), labels, count, f" {' '.join(said)} ")
    return labels.astype(np.float32), count


def _drop_repeats(lists: list[list[str]], before: np.ndarray, labels: np.ndarray, count: np.ndarray, gold: str) -> None:
    places: dict[str, list[int]] = defaultdict(list)
    for i, words in enumerate(lists):
        if before[i] > 0.5:
            places[f" {' '.join(words)} "].append(i)
    content = np.nan_to_num(before) * count
    for text, found in places.items():
        room = max(1, gold.count(text))
        if len(found) > room:

            def share_of_content(i: int) -> float:
                around = slice(max(0, i - 6), i + 7)
                return float(content[around].sum() / max(1, count[around].sum()))

            ranked = sorted(found, key=share_of_content, reverse=True)
            labels[ranked[room:]] = 0


def label_segments(texts: list[str], segments: dict) -> tuple[np.ndarray, np.ndarray]:
    """From segments that must be found and that must not: NaN for blocks with neither."""
    wanted, unwanted = ([" ".join(tokens(s)) for s in segments.get(key) or []] for key in ("with", "without"))
    labels, count = np.full(len(texts), np.nan, np.float32), np.zeros(len(texts), np.float32)
    for i, text in enumerate(texts):
        words = tokens(text)
        line, count[i] = " ".join(words), len(words)
        if any(s and s in line for s in wanted):
            labels[i] = 1
        elif any(s and s in line and len(line) < 4 * len(s) + 40 for s in unwanted):
            labels[i] = 0
    return labels, count


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


def examples(folder: Path, half: int | None) -> tuple[list[Example], list[str]]:
    """The pages of a half, or all, and the tags and words that may be chosen, by their bits."""
    pages = [(s, None) for s in load(folder) if TOKEN.search(s.gold)] + load_more(folder)
    pages = [(sample, segments) for sample, segments in pages if half is None or sample.half == half]
    trees = [HTMLTree.parse(sample.html) for sample, _ in pages]
    bodies = [head_and_body(str(tree))[1] for tree in trees]
    domains: dict[str, set[str]] = defaultdict(set)
    for (sample, _), body in zip(pages, bodies):
        for value in set(VALUE.findall(body)):
            for word in WORD.findall(value):
                domains[word.lower()].add(domain(sample.url))
    words = sorted(word for word, seen in domains.items() if len(seen) >= MIN_DOMAINS and len(word) > 1)
    vocabulary = {word: i for i, word in enumerate([f"<{tag}" for tag in TAGS.split()] + ["hidden"])}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    found, markup = [], Markup(vocabulary)
    for (sample, segments), tree, body in zip(pages, trees, bodies):
        blocks, containers = read_blocks(body, markup)
        if blocks:
            texts = [block.text for block in blocks]
            labels, count = label(texts, sample.gold) if segments is None else label_segments(texts, segments)
            title = " ".join((tree.title or "").split())
            found.append(Example(sample, blocks, containers, title, labels, count))
    return found, list(vocabulary)


def unpack(sets: list[bytes], size: int) -> np.ndarray:
    """[sets, size] of 0 and 1."""
    packed = np.frombuffer(b"".join(sets), np.uint8).reshape(len(sets), -1)
    return np.unpackbits(packed, axis=1, count=size, bitorder="little")


def information(pages: list[Example], inputs: list[np.ndarray]) -> np.ndarray:
    """[bits] what each bit tells about being content, in nats a block; 0 for bits of few pages."""
    size = inputs[0].shape[1]
    inside, total, seen = np.zeros((size, 2)), np.zeros(2), np.zeros(size)
    for page, bits in zip(pages, inputs):
        content = np.nan_to_num(page.labels) > 0.5
        weight = np.sqrt(page.words) / max(1, np.sqrt(page.words).sum())
        both = np.stack([weight * ~content, weight * content], 1)
        inside, total, seen = inside + bits.T @ both, total + both.sum(0), seen + bits.any(0)

    def entropy(counts: np.ndarray) -> np.ndarray:
        share = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9)
        return -(share * np.log(share + 1e-12)).sum(-1)

    outside = total - inside
    left = inside.sum(1) * entropy(inside) + outside.sum(1) * entropy(outside)
    return np.where(seen >= MIN_DOMAINS, entropy(total) - left / total.sum(), 0)


def best(scores: np.ndarray, count: int) -> list[int]:
    return sorted(np.argsort(-scores)[:count].tolist())


class Net(nn.Module):
    """The network of puna/corpus/extract/network.py, on padded batches."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, WIDTH)
        self.conv = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, padding=2**i, dilation=2**i) for i in range(DEPTH))
        self.page = nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.Linear(WIDTH, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Logits [batch, blocks] from [batch, blocks, inputs]; `mask` is 1 on blocks, 0 on padding."""
        state = self.drop(torch.relu(self.first(inputs)) * mask[..., None]).transpose(1, 2)
        mask = mask[:, None]
        for i, conv in enumerate(self.conv):
            state = (state + self.drop(torch.relu(conv(state)))) * mask
            if i == DEPTH // 2:
                page = torch.cat([state.sum(2) / mask.sum(2), (state - 1e4 * (1 - mask)).amax(2)], 1)
                state = (state + torch.relu(self.page(page))[:, :, None]) * mask
        return self.last(state.transpose(1, 2))[..., 0]


def loss(logits: Tensor, labels: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy, a block weighing the root of its words, and 1 - F1 with probabilities for counts; both by page."""
    share = words.sqrt() / words.sqrt().sum(1, keepdim=True).clamp(min=1)
    entropy = (F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * share).sum(1)
    kept = torch.sigmoid(logits) * words
    f1 = 2 * (kept * labels).sum(1) / (kept.sum(1) + (labels * words).sum(1)).clamp(min=1)
    return ((entropy + 1 - f1) * weight).mean()


def batch_loss(
    net: Net, pages: list[Example], inputs: list[Tensor], features: int, random: np.random.Generator
) -> Tensor:
    """Of some pages, each cut to MAX_BLOCKS at a random place and without some of its bits."""
    longest = max(min(len(rows), MAX_BLOCKS) for rows in inputs)
    padded = torch.zeros(len(pages), longest, inputs[0].shape[1])
    labels, words, mask = (torch.zeros(len(pages), longest) for _ in range(3))
    for i, (page, rows) in enumerate(zip(pages, inputs)):
        start = int(random.integers(0, max(1, len(rows) - MAX_BLOCKS)))
        part = slice(start, start + MAX_BLOCKS)
        size = len(rows[part])
        padded[i, :size] = rows[part]
        labels[i, :size] = torch.from_numpy(np.nan_to_num(page.labels[part]))
        words[i, :size] = torch.from_numpy(np.where(np.isnan(page.labels[part]), 0, page.words[part]))
        mask[i, :size] = 1
    kept = random.random((len(pages), padded.shape[2])) > DROPPED_BITS
    kept[:, -OPENINGS:] &= random.random((len(pages), 1)) > DROPPED_OPENINGS
    kept[:, :features] = True
    padded *= torch.from_numpy(kept)[:, None].float()
    weight = torch.tensor([ARTICLE_WEIGHT if page.sample.kind == "benchmark article" else 1.0 for page in pages])
    return loss(net(padded, mask), labels, words, weight)


def fit(pages: list[Example], inputs: list[Tensor], features: int, epochs: int, rate: float = 3e-3) -> Net:
    """Inputs [blocks, features + bits] each. Returns the average of the weights over the last steps. Pages of like
    length share a batch; a page loses a quarter of all bits at random, so that no single word decides."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    net = Net(inputs[0].shape[1])
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.05)
    steps, step = epochs * (len(pages) // BATCH), 0
    for epoch in range(epochs):
        order = sorted(range(len(pages)), key=lambda i: min(len(inputs[i]), MAX_BLOCKS) * random.uniform(0.7, 1.4))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        total = 0.0
        for number in random.permutation(len(batches)):
            step += 1
            optimizer.param_groups[0]["lr"] = rate * min(1, step / 50) * max(0.02, 1 - step / (steps + 60))
            chosen = batches[number]
            error = batch_loss(net, [pages[i] for i in chosen], [inputs[i] for i in chosen], features, random)
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
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--half", type=int, choices=(0, 1), help="of the pages, by the hash of their domains")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pages, words = examples(arguments.folder, arguments.half)

    hints = [unpack([block.hints for block in page.blocks], len(words)) for page in pages]
    near = [unpack([block.near for block in page.blocks], len(words)) for page in pages]
    score = information(pages, hints) + information(pages, near)
    chosen = best(score + [word.startswith("<") for word in words], HINTS)  # all tags first

    firsts = [[opening(block.text) for block in page.blocks] for page in pages]
    used = Counter({word: 0 for page in firsts for block in page for word in block})
    for name in {domain(page.sample.url) for page in pages}:
        same = [first for page, first in zip(pages, firsts) if domain(page.sample.url) == name]
        used.update({word for page in same for block in page for word in block})
    common = {word: i for i, word in enumerate(sorted(word for word, count in used.items() if count >= MIN_DOMAINS))}
    width = (len(common) + 7) // 8
    begun = [
        unpack([sum({1 << common[w] for w in b if w in common}).to_bytes(width, "little") for b in page], len(common))
        for page in firsts
    ]
    openings = best(information(pages, begun), OPENINGS)

    plain = [
        torch.from_numpy(
            numbers(
                measure(page.blocks, page.title, {})[0],
                alike(page.blocks, page.containers),
                page.containers,
                enclosing(page.containers),
            )
        )
        for page in pages
    ]
    mean, scale = torch.cat(plain).mean(0), torch.cat(plain).std(0) + 1e-3
    inputs = [
        torch.cat(
            [(p - mean) / scale, torch.from_numpy(np.concatenate([h[:, chosen], n[:, chosen], b[:, openings]], 1))], 1
        )
        for p, h, n, b in zip(plain, hints, near, begun)
    ]
    net = fit(pages, inputs, len(mean), arguments.epochs)
    opened = list(common)
    half = "" if arguments.half is None else f"half {arguments.half}, by the hash of the domain, of "
    save(net, mean, scale, [words[i] for i in chosen], [opened[i] for i in openings], half + FITTED_ON, arguments.out)


if __name__ == "__main__":
    main()
