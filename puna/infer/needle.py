"""Does a model find what it was told, wherever in its context? The needle map: share of needles found, by depth.

The answer is one word, so reading the likeliest next token after each question is what greedy generation would say.
"""

from collections.abc import Sequence

import numpy as np
import torch

from puna.model.llama import Llama
from puna.text.needle import NeedleMaker
from puna.train.batches import rng


@torch.inference_mode()
def find_needles(
    model: Llama,
    needles: NeedleMaker,
    text: np.ndarray,
    length: int,
    depths: int,
    haystacks: Sequence[int],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> np.ndarray:
    """Which needles are found in the haystacks of these numbers, of `length` tokens: [haystacks, depths] bool.

    Every haystack has a needle at each of `depths` depths, the first at its beginning and the last at the end of its
    text, and begins at its own place of `text`.
    """
    device = model.lm_head.weight.device
    found = np.zeros((len(haystacks), depths), bool)
    for place, number in enumerate(haystacks):
        random = rng(seed, "needles", length, number)
        start = random.integers(len(text))
        some = np.take(text, range(start, start + 2 * length), mode="wrap").astype(np.int64)
        made = needles.make(some, length, np.linspace(0, 1, depths), random)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model.hidden(torch.from_numpy(made.tokens)[None].to(device))[0]
            likeliest = model.lm_head(hidden[torch.from_numpy(made.answers - 1).to(device)]).argmax(-1)
        found[place, made.asked] = likeliest.cpu().numpy() == made.tokens[made.answers]
    return found
