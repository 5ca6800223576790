"""Down-sampling of over-represented topics (section 3.1.2), and the groups by which training weighs documents.

The paper finds with a classifier that some categories, such as arts and entertainment, are over-represented on the
web, and down-samples them; which ones, and to what, it does not print. How often a group is read in training is set by
`pretrain.mix` and `pretrain.weights` and done in puna/train/batches.py.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from puna.errors import PunaError
from puna.recipe import Corpus

DRAW = 1  # keeps this draw apart from that of the held-out documents, which is of the plain hash


def topic_fractions(sizes: Mapping[str, int], knobs: Corpus) -> dict[str, float]:
    """The share of each topic's documents to keep, so that no topic exceeds its limit of what is left.

    `sizes`: characters of each topic. Limits are shares of the total after sampling: with the topics over their limit
    at exactly that, and the others whole, total = whole / (1 - limits). PunaError where the limits sum to less than 1.
    """
    sizes = {topic: size for topic, size in sizes.items() if size}
    limits = {topic: knobs.topic_shares.get(topic, knobs.max_topic_share) if topic else 1.0 for topic in sizes}
    total, over = float(sum(sizes.values())), set()
    while grown := {topic for topic in sizes if sizes[topic] > limits[topic] * total * (1 + 1e-9)} - over:
        over |= grown  # the total shrinks, which may bring another topic over its limit, and never one below
        whole = sum(size for topic, size in sizes.items() if topic not in over)
        room = 1 - sum(limits[topic] for topic in over)
        if whole == 0 or room <= 0:
            raise PunaError(
                f"corpus.topic_shares and max_topic_share = {knobs.max_topic_share:g} allow the {len(sizes)} topics of "
                f"this corpus {sum(limits.values()):.3g} of it in all; raise them to 1 or more"
            )
        total = whole / room
    return {topic: min(1.0, limits[topic] * total / sizes[topic]) for topic in sorted(sizes)}


def keeps(names: Sequence[str], topics: Sequence[str], fractions: Mapping[str, float]) -> np.ndarray:
    """[documents] bool: whether a document stays, by the hash of its name (its URL) alone."""
    draws = np.array([xxhash.xxh3_64_intdigest(name.encode(), DRAW) for name in names], np.uint64)
    return draws < np.array([fractions.get(topic, 1.0) for topic in topics]) * 2.0**64


GROUP = ("language", "topic", "source")
"""The columns by whose values `pretrain.weights` weighs documents: shards keep documents apart that differ in them."""
