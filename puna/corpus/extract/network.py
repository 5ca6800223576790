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
from puna.corpus.extract.features import told
from puna.corpus.extract.layers import Layers
from puna.corpus.extract.markup import Markup
from puna.corpus.extract.metadata import Claims
from puna.corpus.extract.passes import Passes, make_passes


@dataclass(frozen=True)
class Network:
    passes: Passes
    """Know the words of attributes, those that blocks begin with, and their bits."""
    layers: Layers

    def probabilities(self, blocks: list[Block], containers: np.ndarray, claims: Claims) -> np.ndarray:
        """Of each block to be main content, [blocks] float32."""
        rows, openings = self.passes.measure(blocks, claims.title)
        kin = self.passes.alike(blocks, containers)
        inputs = self.passes.numbers(rows, kin, containers, self.passes.enclosing(containers))
        inputs = np.concatenate([inputs, told(blocks, claims)], 1)
        logits = self.passes.forward(self.layers, inputs, blocks, openings)
        return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


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
