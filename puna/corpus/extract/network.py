"""Which blocks are main content: a small convolutional network over the blocks of a page.

Its 1-D convolutions with growing dilation see some thirty blocks to each side, and a pooled layer sees the whole page:
whether a short line is content depends on what surrounds it (the idea of Web2Text, arXiv 1801.02607). Fitted by
benchmarks/extraction_fit.py on half of two public development sets; `weights.json` says which.
"""

import base64
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from puna.corpus.extract.blocks import Block, Container
from puna.corpus.extract.features import bits, numbers


@dataclass(frozen=True)
class Network:
    """H is the width; the first layer takes [numbers, hints, near hints]."""

    vocabulary: dict[str, int]
    layers: dict[str, np.ndarray]
    """first [inputs, H], first_bias [H], conv [L, 3, H, H], conv_bias [L, H], page [2 H, H], page_bias [H], last [H]
    and last_bias [1], float32."""

    def probabilities(self, blocks: list[Block], containers: list[Container], title: str) -> np.ndarray:
        """Of each block to be main content, [blocks] float32."""
        size, layer = len(self.vocabulary), self.layers
        hints, near = bits([block.hints for block in blocks], size), bits([block.near for block in blocks], size)
        inputs = np.concatenate([numbers(blocks, containers, title), hints, near], 1, dtype=np.float32)
        state = np.maximum(inputs @ layer["first"] + layer["first_bias"], 0)
        depth = len(layer["conv"])
        for i in range(depth):
            state = state + np.maximum(convolve(state, layer["conv"][i], 2**i) + layer["conv_bias"][i], 0)
            if i == depth // 2:
                page = np.concatenate([state.mean(0), state.max(0)])
                state = state + np.maximum(page @ layer["page"] + layer["page_bias"], 0)
        return 1 / (1 + np.exp(-np.clip(state @ layer["last"] + layer["last_bias"], -30, 30)))


def convolve(state: np.ndarray, weights: np.ndarray, dilation: int) -> np.ndarray:
    """[blocks, H] with the neighbours at -dilation, 0 and +dilation; weights [3, H, H]. Zeros beyond the ends."""
    out = state @ weights[1]
    if len(state) > dilation:
        out[dilation:] += state[:-dilation] @ weights[0]
        out[:-dilation] += state[dilation:] @ weights[2]
    return out


@cache
def load_network() -> Network:
    """The fitted weights that come with this package."""
    saved = json.loads(Path(__file__).with_name("weights.json").read_text("utf-8"))
    layers = {
        name: np.frombuffer(base64.b64decode(values), "<f2").astype(np.float32).reshape(saved["shapes"][name])
        for name, values in saved["layers"].items()
    }
    return Network({word: bit for bit, word in enumerate(saved["vocabulary"])}, layers)
