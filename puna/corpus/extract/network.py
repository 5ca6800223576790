"""Which blocks are main content: a small convolutional network over the blocks of a page.

Its 1-D convolutions with growing dilation see some thirty blocks to each side, and a pooled layer sees the whole page:
whether a short line is content depends on what surrounds it (the idea of Web2Text, arXiv 1801.02607). Fitted by
benchmarks/extraction_fit.py on public development sets; `weights.json` says which.
"""

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from puna.corpus.extract.blocks import Block
from puna.corpus.extract.features import numbers
from puna.corpus.extract.markup import Markup
from puna.corpus.extract.passes import Passes, make_passes

PIECE = 1 << 18


@dataclass(frozen=True)
class Network:
    """H is the width."""

    passes: Passes
    """Know the words of attributes, those that blocks begin with, and their bits."""
    layers: dict[str, np.ndarray]
    """numbers [features, H], hints and near [vocabulary, H], openings [words, H], first_bias [H], conv [L, 3, H, H],
    conv_bias [L, H], page [2 H, H], page_bias [H], last [H] and last_bias [1]; float32."""

    def probabilities(self, blocks: list[Block], containers: np.ndarray, title: str) -> np.ndarray:
        """Of each block to be main content, [blocks] float32."""
        layer = self.layers
        rows, openings = self.passes.measure(blocks, title)
        kin = self.passes.alike(blocks, containers)
        inputs = numbers(rows, kin, containers, self.passes.enclosing(containers))
        state = product(inputs, layer["numbers"]) + layer["first_bias"]
        state += bag([block.hints for block in blocks], layer["hints"])
        state += bag([block.near for block in blocks], layer["near"])
        state += bag(openings, layer["openings"])
        state = np.maximum(state, 0)
        depth = len(layer["conv"])
        for i in range(depth):
            state = state + np.maximum(convolve(state, layer["conv"][i], 2**i) + layer["conv_bias"][i], 0)
            if i == depth // 2:
                page = np.concatenate([state.mean(0), state.max(0)])
                state = state + np.maximum(page @ layer["page"] + layer["page_bias"], 0)
        return 1 / (1 + np.exp(-np.clip(state @ layer["last"] + layer["last_bias"], -30, 30)))


def bag(sets: list[bytes], weights: np.ndarray) -> np.ndarray:
    """[sets, H]: for each bit set the sum of its rows of weights [bits, H]. Few sets differ."""
    distinct = {value: i for i, value in enumerate(dict.fromkeys(sets))}
    width = (len(weights) + 7) // 8
    packed = np.frombuffer(b"".join(distinct), np.uint8)
    chosen = np.unpackbits(packed.reshape(-1, width), axis=1, count=len(weights), bitorder="little")
    return product(chosen.astype(np.float32), weights)[[distinct[value] for value in sets]]


def convolve(state: np.ndarray, weights: np.ndarray, dilation: int) -> np.ndarray:
    """[blocks, H] with the neighbours at -dilation, 0 and +dilation; weights [3, H, H]. Zeros beyond the ends."""
    blocks, width = state.shape
    padded = np.zeros((blocks + 2 * dilation, width), np.float32)
    padded[dilation:-dilation] = state
    columns = np.concatenate([padded[:blocks], state, padded[-blocks:]], 1)
    return product(columns, weights.reshape(3 * width, -1))


def product(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """rows @ weights in pieces so small that no BLAS hands them to threads, which would cost more than they bring and
    make the last bits of the result depend on their number."""
    out = np.empty((len(rows), weights.shape[1]), np.float32)
    step = max(1, PIECE // weights.size)
    for start in range(0, len(rows), step):
        np.matmul(rows[start : start + step], weights, out=out[start : start + step])
    return out


WEIGHTS = Path(__file__).with_name("weights.json")


@cache
def load_network(path: Path = WEIGHTS) -> Network:
    """The fitted weights in a file, by default those that come with this package."""
    saved = json.loads(path.read_text("utf-8"))
    layers = {
        name: np.frombuffer(base64.b64decode(values), "<f2").astype(np.float32).reshape(saved["shapes"][name])
        for name, values in saved["layers"].items()
    }
    vocabulary, openings = ({word: bit for bit, word in enumerate(saved[name])} for name in ("vocabulary", "openings"))
    return Network(make_passes(Markup(vocabulary), openings), layers)
