"""MinHash signatures of word 5-grams, 112 permutations: speed and error beside other tools. See README.md.

python benchmarks/minhash.py [--texts FILE ...] [--documents N] [--rounds N]
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import xxhash
from dedup import KNOBS, changed, parse, passages
from spread import spread

from puna.corpus.minhash import text_keys

Signatures = Callable[[list[str]], np.ndarray]


def contestants() -> dict[str, Signatures]:
    """Functions of texts to [texts, 112] signatures of word 5-grams; of the peers those that are installed."""
    found: dict[str, Signatures] = {"puna": lambda texts: text_keys(texts, KNOBS).signatures}
    makers = (_datatrove, _datatrove_by_spaces, _datasketch, _rensa, _daft)
    for maker in makers:
        try:
            found[maker.__name__.strip("_").replace("_", " ")] = maker()
        except ImportError as error:
            print(f"without {maker.__name__.strip('_')}: {error}")
    return found


def _datatrove(tokenizer: object = None) -> Signatures:
    datatrove = import_module("datatrove.pipeline.dedup.minhash")
    config = datatrove.MinhashConfig(num_buckets=14, hashes_per_bucket=8, n_grams=5)
    step = datatrove.MinhashDedupSignature(tempfile.mkdtemp(), config)
    if tokenizer:
        step.word_tokenizer = tokenizer
    return lambda texts: np.array([np.concatenate(step.get_signature(step.get_shingles(text))) for text in texts])


def _datatrove_by_spaces() -> Signatures:
    """Without spaCy, which it takes by default and which needs most of its time."""
    return _datatrove(SimpleNamespace(word_tokenize=str.split))


def _grams(text: str) -> list[str]:
    words = text.split()
    return [" ".join(words[place : place + 5]) for place in range(max(1, len(words) - 4))]


def _datasketch() -> Signatures:
    blank = import_module("datasketch").MinHash(112, hashfunc=xxhash.xxh32_intdigest)

    def signatures(texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            one = blank.copy()
            one.update_batch([gram.encode() for gram in _grams(text)])
            found.append(one.hashvalues)
        return np.array(found)

    return signatures


def _rensa() -> Signatures:
    rensa = import_module("rensa")

    def signatures(texts: list[str]) -> np.ndarray:
        found = []
        for text in texts:
            one = rensa.RMinHash(num_perm=112, seed=42)
            one.update(_grams(text))
            found.append(one.digest())
        return np.array(found)

    return signatures


def _daft() -> Signatures:
    daft, functions = import_module("daft"), import_module("daft.functions")
    daft.set_runner_native(num_threads=1)
    column = functions.minhash(daft.col("text"), num_hashes=112, ngram_size=5, hash_function="xxhash3_64")

    def signatures(texts: list[str]) -> np.ndarray:
        frame = daft.from_pydict({"text": texts}).select(column.alias("signature"))
        table = frame.to_arrow()["signature"].combine_chunks()
        return np.asarray(table.flatten()).reshape(len(texts), -1)

    return signatures


def minhash_speed(options: argparse.Namespace) -> None:
    texts = passages(options.texts, options.documents)
    pick = random.Random(1)
    clean = [" ".join("".join(c if c.isalnum() else " " for c in text.lower()).split()) for text in texts[:600]]
    copies = [changed(text, pick.choice([0.002, 0.005, 0.01, 0.02, 0.04, 0.08]), pick) for text in clean]
    pairs = [(set(_grams(a)), set(_grams(b))) for a, b in zip(clean, copies)]
    true = np.array([len(a & b) / len(a | b) for a, b in pairs])
    theory = (true * (1 - true) / 112).mean() ** 0.5
    found = contestants()
    errors, speeds = {}, {name: [] for name in found}
    for name, function in found.items():  # also the warm-up
        errors[name] = (((function(clean) == function(copies)).mean(axis=1) - true) ** 2).mean() ** 0.5
    for _ in range(options.rounds):
        for name, function in found.items():
            started = time.process_time()
            function(texts)
            speeds[name].append(len(texts) / (time.process_time() - started))
    words, characters = (
        sum(len(of_text) for of_text in every) / len(texts) for every in (map(str.split, texts), texts)
    )
    print(f"{len(texts)} documents of {words:.0f} words, {characters:.0f} characters; "
          f"error of the estimate in theory {theory:.4f}")  # fmt: skip
    print("| | documents/s/core | times datatrove | times datatrove by spaces | error of the estimate |")
    print("|---|---|---|---|---|")
    for name in found:
        ratios = [spread([a / b for a, b in zip(speeds[name], speeds[peer])]) if peer in found else "-"
                  for peer in ("datatrove", "datatrove by spaces")]  # fmt: skip
        print(f"| {name} | {spread(speeds[name], 0)} | {' | '.join(ratios)} | {errors[name]:.4f} |")


if __name__ == "__main__":
    minhash_speed(parse(__doc__ or ""))
