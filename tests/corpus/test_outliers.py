"""How far the words of a document are from those of its language."""

import hashlib
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna.corpus import outliers
from puna.corpus.filters import Text
from puna.corpus.outliers import (
    BUCKETS,
    SCHEMA,
    TokenCounts,
    TokenDistribution,
    load_distributions,
    merge_counts,
    outlier_words,
)
from puna.recipe import Corpus

from .conftest import prose

KNOBS = Corpus()  # pyright: ignore[reportCallIssue]


@pytest.fixture(scope="module")
def zipf() -> np.ndarray:
    """[BUCKETS] counts of ten million words whose frequencies fall as those of a language do."""
    shares = 1 / (np.arange(BUCKETS) + 2.7)
    return np.round(np.random.default_rng(0).permutation(shares / shares.sum()) * 1e7)


def hashes_of(buckets: np.ndarray) -> np.ndarray:
    """Hashes that fall into given buckets: the inverse of the mixing."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    return (buckets.astype(np.uint64) << np.uint64(48)) * np.uint64(inverse)


def test_a_random_text_is_at_zero_whatever_its_length(zipf: np.ndarray) -> None:
    distribution = TokenDistribution(zipf)
    pick = np.random.default_rng(1)
    shares = np.exp(distribution.log_q)
    for length, spread in ((50, 0.2), (500, 0.1), (5_000, 0.05), (50_000, 0.02)):
        values = [distribution.divergence(hashes_of(pick.choice(BUCKETS, length, p=shares))) for _ in range(20)]
        assert abs(np.mean(values)) < spread


def test_the_value_is_the_divergence(zipf: np.ndarray) -> None:
    """Against the sum itself, for a long text, where chance has no share in it."""
    distribution = TokenDistribution(zipf)
    q = (zipf + 0.5) / (zipf + 0.5).sum()
    counts = np.random.default_rng(2).multinomial(10_000_000, np.roll(q, 1))
    p = counts / counts.sum()
    here = p > 0
    expected = (p[here] * np.log(p[here] / q[here])).sum()
    found = distribution.divergence(hashes_of(np.repeat(np.arange(BUCKETS), counts)))
    assert found == pytest.approx(expected, abs=0.05)
    assert found > 2
    assert distribution.divergence(np.empty(0, np.uint64)) == 0


def test_what_is_caught_and_what_is_not() -> None:
    counts = TokenCounts()
    for seed in range(3000):
        counts.add(Text(prose(seed), "en"))
    distributions = load_distributions(merge_counts([counts.table()]))
    assert set(distributions) == {"en"}
    words = " ".join(hashlib.md5(bytes([n])).hexdigest()[:7] for n in range(200))
    assert outlier_words(Text(words, "en"), distributions, KNOBS) == "outlier-words"
    for length in (1, 12, 400):
        assert outlier_words(Text(prose(10_000, length), "en"), distributions, KNOBS) is None
    assert outlier_words(Text(words, "de"), distributions, KNOBS) is None  # nothing to compare it with
    lenient = KNOBS.model_copy(update={"max_divergence": 50.0})
    assert outlier_words(Text(words, "en"), distributions, lenient) is None


def test_shards_add_up_in_any_order() -> None:
    texts = [Text(prose(seed), "en" if seed % 3 else "de") for seed in range(30)]
    whole = TokenCounts()
    for text in texts:
        whole.add(text)
    shards = []
    for start in range(0, 30, 7):
        shard = TokenCounts()
        for text in texts[start : start + 7]:
            shard.add(text)
        shards.append(shard.table())
    assert merge_counts(shards).equals(whole.table())
    assert merge_counts(reversed(shards)).equals(whole.table())
    assert whole.table().schema == SCHEMA
    assert sum(whole.table()["count"].to_pylist()) == sum(len(text.hashes) for text in texts)


def test_a_language_of_few_words_is_not_judged() -> None:
    counts = TokenCounts()
    counts.add(Text(prose(1), "en"))
    assert load_distributions(counts.table()) == {}
    assert load_distributions(TokenCounts().table()) == {}
    assert merge_counts([]).equals(TokenCounts().table())


def test_real_books(shared_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Chapters of textbooks against all of them: none is dropped, while keys and dumps are."""
    counts, chapters = TokenCounts(), []
    with lzma.open(shared_data("corpus_en/openstax_textbooks.jsonl.xz"), "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == 60:
                break
            text = max((v for v in json.loads(line).values() if isinstance(v, str)), key=len)
            for start in range(0, min(len(text), 200_000), 5000):
                chapters.append(Text(text[start : start + 5000], "en"))
                counts.add(chapters[-1])
    monkeypatch.setattr(outliers, "FEWEST", 100_000)
    distributions = load_distributions(counts.table())
    dropped = [text.text for text in chapters if outlier_words(text, distributions, KNOBS)]
    assert len(dropped) <= 0.005 * len(chapters)
    keys = " ".join(hashlib.sha256(str(n).encode()).hexdigest() for n in range(100))
    assert outlier_words(Text(keys, "en"), distributions, KNOBS) == "outlier-words"
