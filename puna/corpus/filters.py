"""Rules that tell a page of text from a menu, a log or a heap of fragments (section 3.1.1, heuristic filtering).

Each rule looks at one thing and returns the reason to drop a page, or None. They follow Gopher (arXiv 2112.11446,
appendix A.1.1); the paper prints no thresholds, and ours leave room for documentation, code and mathematics.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import numpy as np

from puna.corpus.shingles import hash_ngrams, hash_words
from puna.recipe import Corpus

REPEATED = 10  # words in a run whose repetition counts

# The commonest words. Documentation in any language quotes English, so the English ones count everywhere.
STOP_WORDS = {
    "en": "the of and to a in is that for it as with on be this by or are not from an can if you at which will have",
    "de": "der die das und zu in den ist von mit nicht sie ein eine für auf im dem des es wird werden sich als auch",
    "es": "el la los las de que y en un una para se con no es por del al lo como su más o este",
    "fr": "le la les des de et un une pour que est dans du en par sur au qui ne pas ce il vous sont avec ou",
    "hi": "के का की में है और से को पर यह कि एक हैं ने लिए या कर इस भी तो आप करें हो करने किसी",
    "it": "il la le di e che un una per in è con non del si da i gli della nel o sono come",
    "pt": "o a os as de e que um uma para se com não é por do da em no na ou como dos",
}


LATIN = ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF))
DEVANAGARI = ((0x900, 0x97F),)
OTHER_SCRIPTS = ((0x370, 0x8FF), (0x980, 0x1DFF), (0x1F00, 0x1FFF), (0x2C00, 0xD7FF), (0xF900, 0xFFEE))


class Text:
    """What the rules look at, each counted once."""

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language = text, language

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def word_counts(self) -> Counter[str]:
        return Counter(self.words)

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def hashes(self) -> np.ndarray:
        return hash_words(self.text)


Rule = Callable[[Text, Corpus], str | None]


def too_short(text: Text, knobs: Corpus) -> str | None:
    return "too-few-words" if len(text.words) < knobs.min_words else None


def too_long(text: Text, knobs: Corpus) -> str | None:
    return "too-many-words" if len(text.words) > knobs.max_words else None


def odd_words(text: Text, knobs: Corpus) -> str | None:
    """Letters of an alphabet, or identifiers and addresses."""
    mean = sum(len(word) * count for word, count in text.word_counts.items()) / len(text.words)
    fits = knobs.min_mean_word_length <= mean <= knobs.max_mean_word_length
    return None if fits else "mean-word-length"


def symbols(text: Text, knobs: Corpus) -> str | None:
    """Hash tags and sentences that break off."""
    count = text.text.count("#") + text.text.count("...") + text.text.count("…")
    return "symbols" if count > knobs.max_symbol_ratio * len(text.words) else None


def few_letters(text: Text, knobs: Corpus) -> str | None:
    """Tables of figures."""
    found = sum(count for word, count in text.word_counts.items() if any(map(str.isalpha, word)))
    return "few-letters" if found < knobs.min_alphabetic_fraction * len(text.words) else None


def few_stop_words(text: Text, knobs: Corpus) -> str | None:
    """Lists of names. A language without a list of its own here is not judged."""
    stop_words = STOP_WORD_SETS.get(text.language)
    if stop_words is None:
        return None
    found = sum(count for word, count in text.word_counts.items() if word.strip(".,;:()").lower() in stop_words)
    return "few-stop-words" if found < knobs.min_stop_word_fraction * len(text.words) else None


def mixed_scripts(text: Text, knobs: Corpus) -> str | None:
    """Translations that stopped half way. Text in another script quotes names and code in Latin letters, so there
    half the share is enough. A language without stop words here is not judged."""
    if text.language not in STOP_WORDS:
        return None
    codes = np.frombuffer(text.text.encode("utf-32-le", "surrogatepass"), np.uint32)
    latin, devanagari, other = (_count(codes, ranges) for ranges in (LATIN, DEVANAGARI, OTHER_SCRIPTS))
    own, share = (devanagari, 0.5) if text.language == "hi" else (latin, 1.0)
    mixed = own < share * knobs.min_script_fraction * (latin + devanagari + other)
    return "mixed-scripts" if mixed else None


def fragments(text: Text, knobs: Corpus) -> str | None:
    """Menus and bare tables."""
    few = len(text.words) < knobs.min_words_per_line * len(text.lines)
    return "few-words-per-line" if few else None


def repeated_lines(text: Text, knobs: Corpus) -> str | None:
    total = sum(map(len, text.lines))
    repeated = total - sum(map(len, set(text.lines)))
    return "repeated-lines" if repeated > knobs.max_duplicate_line_fraction * total else None


def repeated_ngrams(text: Text, knobs: Corpus) -> str | None:
    """Logs and error messages, which no list of lines catches: section 3.1.1."""
    return "repeated-ngrams" if repetition(text.hashes) > knobs.max_duplicate_ngram_fraction else None


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
STOP_WORD_SETS = {code: frozenset(f"{words} {STOP_WORDS['en']}".split()) for code, words in STOP_WORDS.items()}


def reason_to_drop(text: Text, knobs: Corpus) -> str | None:
    """The first rule that a text breaks."""
    return next((reason for rule in RULES if (reason := rule(text, knobs))), None)


def repetition(words: np.ndarray) -> float:
    """Share of the words (as hashes) that lie in a run of REPEATED words which occurred before."""
    if len(words) < REPEATED:
        return 0.0
    grams = hash_ngrams(words, REPEATED)
    again = np.ones(len(grams), bool)
    again[np.unique(grams, return_index=True)[1]] = False
    edges = np.zeros(len(words) + 1, np.int64)
    edges[: len(grams)] += again
    edges[REPEATED : REPEATED + len(grams)] -= again
    return float((np.cumsum(edges[:-1]) > 0).mean())


def _count(codes: np.ndarray, ranges: tuple[tuple[int, int], ...]) -> int:
    return sum(int(((codes >= low) & (codes <= high)).sum()) for low, high in ranges)
