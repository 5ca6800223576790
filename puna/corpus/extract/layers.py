"""The layers of the network over the blocks of a page, in numpy."""

from collections.abc import Mapping

import numpy as np

from puna.corpus.extract.blocks import Block

PIECE = 1 << 18
Layers = Mapping[str, np.ndarray]
"""H is the width: numbers [features, H], hints and near [vocabulary, H], openings [words, H], first_bias [H],
conv [L, 3, H, H], conv_bias [L, H], page [2 H, H], page_bias [H], last [H] and last_bias [1]; float32."""


def forward(layer: Layers, inputs: np.ndarray, blocks: list[Block], openings: np.ndarray) -> np.ndarray:
    """Logits [blocks] from [blocks, features] and bit sets, those of the openings [blocks, bytes] uint8."""
    state = product(inputs, layer["numbers"]) + layer["first_bias"]
    state += bag([block.hints for block in blocks], layer["hints"])
    state += bag([block.near for block in blocks], layer["near"])
    state += bag([bits.tobytes() for bits in openings], layer["openings"])
    state = np.maximum(state, 0)
    depth = len(layer["conv"])
    for i in range(depth):
        state = state + np.maximum(convolve(state, layer["conv"][i], 2**i) + layer["conv_bias"][i], 0)
        if i == depth // 2:
            page = np.concatenate([state.mean(0), state.max(0)])
            state = state + np.maximum(page @ layer["page"] + layer["page_bias"], 0)
    return state @ layer["last"] + layer["last_bias"]


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
