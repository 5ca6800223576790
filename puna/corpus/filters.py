"""Rules that tell a page of text from a menu, a log or a heap of fragments (section 3.1.1, heuristic filtering).

Each rule looks at one thing and returns the reason to drop a page, or None. They follow Gopher (arXiv 2112.11446,
appendix A.1.1); the paper prints no thresholds, and ours leave room for documentation, code and mathematics.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import numpy as np

from puna.corpus.scripts import LATIN, NOT_LATIN, SCRIPTS, SPACELESS, STOP_WORDS, Ranges, count_stop_words, split_words
from puna.corpus.shingles import hash_ngrams, hash_words
from puna.recipe import Corpus, Heuristics

REPEATED = 10  # words in a run whose repetition counts; twice as many characters where words have no spaces


class Text:
    """What the rules look at, each counted once."""

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language = text, language

    @cached_property
    def words(self) -> list[str]:
        return split_words(self.text, self.language)

    @cached_property
    def word_counts(self) -> Counter[str]:
        return Counter(self.words)

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def hashes(self) -> np.ndarray:
        return hash_words(self.text)


Rule = Callable[[Text, Heuristics], str | None]


def too_short(text: Text, knobs: Heuristics) -> str | None:
    return "too-few-words" if len(text.words) < knobs.min_words else None


def too_long(text: Text, knobs: Heuristics) -> str | None:
    return "too-many-words" if len(text.words) > knobs.max_words else None


def odd_words(text: Text, knobs: Heuristics) -> str | None:
    """Letters of an alphabet, or identifiers and addresses."""
    mean = sum(len(word) * count for word, count in text.word_counts.items()) / len(text.words)
    fits = knobs.min_mean_word_length <= mean <= knobs.max_mean_word_length
    return None if fits else "mean-word-length"


def symbols(text: Text, knobs: Heuristics) -> str | None:
    """Hash tags and sentences that break off."""
    count = text.text.count("#") + text.text.count("...") + text.text.count("…")
    return "symbols" if count > knobs.max_symbol_ratio * len(text.words) else None


def few_letters(text: Text, knobs: Heuristics) -> str | None:
    """Tables of figures."""
    found = sum(count for word, count in text.word_counts.items() if any(map(str.isalpha, word)))
    return "few-letters" if found < knobs.min_alphabetic_fraction * len(text.words) else None


def few_stop_words(text: Text, knobs: Heuristics) -> str | None:
    """Lists of names. A language without a list of its own is not judged."""
    found = count_stop_words(text.text, text.word_counts, text.language)
    few = found is not None and found < knobs.min_stop_word_fraction * len(text.words)
    return "few-stop-words" if few else None


def mixed_scripts(text: Text, knobs: Heuristics) -> str | None:
    """Translations that stopped half way. Text in another script quotes names and code in Latin letters, so there
    half the share is enough. A language whose script is not listed is not judged."""
    script = SCRIPTS.get(text.language)
    if script is None and (text.language not in STOP_WORDS or text.text.isascii()):
        return None
    codes = np.frombuffer(text.text.encode("utf-32-le", "surrogatepass"), np.uint32)
    latin, other = _count(codes, LATIN), _count(codes, NOT_LATIN)
    own, share = (latin, 1.0) if script is None else (_count(codes, script), 0.5)
    return "mixed-scripts" if own < share * knobs.min_script_fraction * (latin + other) else None


def fragments(text: Text, knobs: Heuristics) -> str | None:
    """Menus and bare tables."""
    few = len(text.words) < knobs.min_words_per_line * len(text.lines)
    return "few-words-per-line" if few else None


def repeated_lines(text: Text, knobs: Heuristics) -> str | None:
    total = sum(map(len, text.lines))
    repeated = total - sum(map(len, set(text.lines)))
    return "repeated-lines" if repeated > knobs.max_duplicate_line_fraction * total else None


def repeated_ngrams(text: Text, knobs: Heuristics) -> str | None:
    """Logs and error messages, which no list of lines catches: section 3.1.1."""
    n = 2 * REPEATED if text.language in SPACELESS else REPEATED
    return "repeated-ngrams" if repetition(text.hashes, n) > knobs.max_duplicate_ngram_fraction else None


RULES: tuple[Rule, ...] = (
    too_short,
    too_long,
    odd_words,
    symbols,
    few_letters,
    few_stop_words,
    mixed_scripts,
    fragments,
    repeated_lines,
    repeated_ngrams,
)


def reason_to_drop(text: Text, knobs: Corpus) -> str | None:
    """The first rule that a text breaks, by the thresholds of its language."""
    rules = knobs.rules_for(text.language)
    return next((reason for rule in RULES if (reason := rule(text, rules))), None)


def repetition(words: np.ndarray, n: int = REPEATED) -> float:
    """Share of the words (as hashes) that lie in a run of n words which occurred before."""
    if len(words) < n:
        return 0.0
    grams = hash_ngrams(words, n)
    again = np.ones(len(grams), bool)
    again[np.unique(grams, return_index=True)[1]] = False
    edges = np.zeros(len(words) + 1, np.int64)
    edges[: len(grams)] += again
    edges[n : n + len(grams)] -= again
    return float((np.cumsum(edges[:-1]) > 0).mean())


def _count(codes: np.ndarray, ranges: Ranges) -> int:
    return sum(int(((codes >= low) & (codes <= high)).sum()) for low, high in ranges)
