"""Documents whose words are not those of their language: dumps, keys, lists of names, encodings read wrongly.

Section 3.1.1 drops documents with "excessive numbers of outlier tokens compared to the training corpus distribution",
by the Kullback-Leibler divergence, and prints neither token, smoothing nor threshold; ours follow.

A token is a word hashed to one of 2^16 buckets, so that a language is a table of fixed size, the tables of shards add
up, and nothing else of the corpus is needed. With p the shares of a document's words and q those of its language,

    D(p || q) = sum_k p_k log(p_k / q_k)

is far too large for a short text, which cannot hold more than a few of the words there are: 64 words drawn from q alone
have D = 3.2 nats in English. `divergence` takes this off: it is D minus what a text of so many words drawn from q has
on average. A text like any other then has about the same value at any length.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from puna.corpus.filters import Text
from puna.recipe import Corpus

BUCKETS = 1 << 16
FEWEST = 1 << 18
"""Words that a language must have in the corpus for its texts to be compared with it."""
SMOOTHING = 0.5  # added to the count of every bucket
LENGTHS = 2.0 ** np.arange(0, 21)  # words of a text, at which the mean divergence by chance is tabulated
SCHEMA = pa.schema({"language": pa.string(), "bucket": pa.uint16(), "count": pa.int64()})


class TokenCounts:
    """Words of some documents by language and bucket: what a shard adds to the whole."""

    def __init__(self) -> None:
        self.by_language: dict[str, np.ndarray] = {}

    def add(self, text: Text) -> None:
        buckets = np.bincount(bucket(text.hashes), minlength=BUCKETS)
        self.by_language[text.language] = self.by_language.get(text.language, 0) + buckets

    def table(self) -> pa.Table:
        """Rows of SCHEMA, sorted, for the buckets that are not empty."""
        parts = [pa.table([[], [], []], schema=SCHEMA)]
        for language, counts in sorted(self.by_language.items()):
            used = np.flatnonzero(counts)
            parts.append(pa.table([[language] * len(used), used.astype(np.uint16), counts[used]], schema=SCHEMA))
        return pa.concat_tables(parts)


class TokenDistribution:
    """How often the words of a language come, and how far a document is from that."""

    def __init__(self, counts: np.ndarray) -> None:
        """counts: [BUCKETS] words."""
        q = (counts + SMOOTHING) / (counts.sum() + SMOOTHING * BUCKETS)
        self.log_q = np.log(q)
        self.by_chance = _mean_divergence(q, self.log_q)

    def divergence(self, hashes: np.ndarray) -> float:
        """D(p || q) in nats beyond that of a random text of the same length; 0 for no words.

        hashes: [words] uint64, of hash_words.
        """
        if len(hashes) == 0:
            return 0.0
        used, counts = np.unique(bucket(hashes), return_counts=True)
        p = counts / len(hashes)
        by_chance = np.interp(np.log2(len(hashes)), np.log2(LENGTHS), self.by_chance)
        return float(p @ (np.log(p) - self.log_q[used]) - by_chance)


def bucket(hashes: np.ndarray) -> np.ndarray:
    """[words] int64, from 0 to BUCKETS - 1: the upper bits of the hashes, mixed."""
    return ((hashes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48)).astype(np.int64)


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """The sum of the tables of shards, in whichever order they come."""
    total = TokenCounts()
    for table in tables:
        for language, counts in _dense(table).items():
            total.by_language[language] = total.by_language.get(language, 0) + counts
    return total.table()


def load_distributions(table: pa.Table) -> dict[str, TokenDistribution]:
    """By language, for those with words enough."""
    return {code: TokenDistribution(counts) for code, counts in _dense(table).items() if counts.sum() >= FEWEST}


def outlier_words(text: Text, distributions: dict[str, TokenDistribution], knobs: Corpus) -> str | None:
    """`outlier-words` for a text too far from its language; one whose language has no distribution is not judged."""
    distribution = distributions.get(text.language)
    if distribution is None:
        return None
    far = distribution.divergence(text.hashes) > knobs.rules_for(text.language).max_divergence
    return "outlier-words" if far else None


def _dense(table: pa.Table) -> dict[str, np.ndarray]:
    languages = table["language"].to_numpy(zero_copy_only=False)
    buckets, counts = table["bucket"].to_numpy(), table["count"].to_numpy()
    dense = {}
    for code in sorted(set(languages.tolist())):
        here = languages == code
        dense[code] = np.bincount(buckets[here], counts[here], BUCKETS).astype(np.int64)
    return dense


def _mean_divergence(q: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """[LENGTHS] mean of D for texts of n words drawn from q: E[sum X/n log(X/n)] + H(q), X ~ Poisson(n q).

    E[X log X] of a Poisson variable is summed up to a mean of 30 and x log x + 1/2 + 1/(12 x) beyond.
    """
    entropy = -(q @ log_q)
    shares, times = np.unique(q, return_counts=True)
    values = []
    for n in LENGTHS:
        mean = n * shares
        x = np.minimum(mean, 30.0)
        series, term = np.zeros_like(x), np.exp(-x) * x  # P(X = 1)
        for k in range(2, 90):
            term = term * x / k
            series += term * k * np.log(k)
        expected = np.where(mean <= 30, series, mean * np.log(mean) + 0.5 + 1 / (12 * mean))
        values.append(float(times @ expected) / n - np.log(n) + entropy)
    return np.array(values)
