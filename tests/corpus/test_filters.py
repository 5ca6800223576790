"""Each rule on a text that it must drop, and all of them on texts that they must not."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.corpus import filters
from puna.corpus.filters import REPEATED, RULES, Text, reason_to_drop, repetition
from puna.corpus.scripts import STOP_WORDS
from puna.corpus.shingles import hash_words
from puna.recipe import Corpus

from .conftest import prose

KNOBS = Corpus()  # pyright: ignore[reportCallIssue]
HINDI = (
    "शिक्षक बच्चों को समझाते हैं कि नदी में गर्मियों की तुलना में वसंत में अधिक पानी क्यों होता है। इस पाठ के बाद वे सब मिल कर "
    "नदी के किनारे जाते हैं और यह देखते हैं कि पानी किस ओर से आता है। घर लौट कर हर बच्चा एक चित्र बनाता है और उस पर अपना नाम "
    "लिखता है, जिसे शिक्षक अगले दिन कक्षा की दीवार पर लगा देते हैं ताकि सब लोग उसे देख सकें और उस पर बात कर सकें।"
)

SHELL = "# This is the script that we will run for you, as the old one is gone\n" + "\n".join(
    f"if [ -f $FILE{n} ]; then  # it is there\n  for i in $(seq {n}); do echo the $i of {n * n}; done\nfi"
    for n in range(12)
)
MATH = r"""
We prove that $\sqrt{2}$ is not rational. Suppose that $\sqrt{2} = \frac{p}{q}$ with integers p and q without a common
divisor. Then $2 q^2 = p^2$, so p is even: $p = 2 r$ for some r. This gives $q^2 = 2 r^2$, and q is even as well, which
contradicts the choice of p and q. For n = 3, 5, 7 the proof is the same, and in general $\sqrt{n}$ is rational only if
n is the square of an integer.

\sum_{k=1}^{n} k = \frac{n (n + 1)}{2}

The formula above follows by induction: it is true for n = 1, and from n to n + 1 both sides grow by n + 1.
"""
GOOD = {
    "prose": (prose(1), "en"),
    "hindi": (HINDI, "hi"),
    "code": (Path(filters.__file__).read_text(encoding="utf-8"), "en"),
    "shell": (SHELL, "en"),
    "math": (MATH, "en"),
}
SENTENCE = " Then he said that the file of the user could not be found in the folder"
BAD = {
    "too-few-words": ("Not much to read.", "en"),
    "too-many-words": (prose(2, 6000), "en"),
    "mean-word-length": ("the-longest-of-identifiers in/every/single/directory/of/it and " * 30, "en"),
    "symbols": (prose(3).replace(" ", " # ", 60), "en"),
    "few-letters": (prose(4) + " 12 34 56" * 100, "en"),
    "few-stop-words": (" ".join(f"Item{n} name{n} value{n} entry{n}" for n in range(60)), "en"),
    "mixed-scripts": (f"{HINDI} {prose(5)}", "en"),
    "few-words-per-line": (prose(6).replace(" ", "\n"), "en"),
    "repeated-lines": ("\n".join([f"{prose(7, 1)}"] * 20 + [prose(8)]), "en"),
    "repeated-ngrams": (prose(9, 6) + SENTENCE * 9, "en"),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_text_stays(name: str) -> None:
    text, language = GOOD[name]
    assert reason_to_drop(Text(text, language), KNOBS) is None


@pytest.mark.parametrize("reason", BAD)
def test_bad_text_is_dropped_for_its_reason(reason: str) -> None:
    text, language = BAD[reason]
    assert reason in {rule(Text(text, language), KNOBS.model_copy(update={"max_words": 50_000})) for rule in RULES}
    assert reason_to_drop(Text(text, language), KNOBS) is not None


def test_every_rule_is_tested_by_a_reason_of_its_own() -> None:
    assert len(BAD) == len(RULES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", reason) for reason in BAD)


def test_stop_words_cover_the_languages_of_the_recipe() -> None:
    assert set(KNOBS.languages) <= set(STOP_WORDS)


def test_a_language_without_stop_words_is_not_judged_by_them() -> None:
    text = Text(BAD["few-stop-words"][0], "sw")
    assert reason_to_drop(text, KNOBS) is None


def test_another_script_needs_half_the_share() -> None:
    assert filters.mixed_scripts(Text(HINDI + " The LibreOffice menu of the file" * 4, "hi"), KNOBS) is None
    assert filters.mixed_scripts(Text(HINDI + " The LibreOffice menu of the file" * 40, "hi"), KNOBS)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_repetition_against_its_definition(letters: list[int]) -> None:
    words = np.array(letters, np.uint64)
    seen: set[tuple[int, ...]] = set()
    covered = [False] * len(letters)
    for start in range(len(letters) - REPEATED + 1):
        run = tuple(letters[start : start + REPEATED])
        if run in seen:
            covered[start : start + REPEATED] = [True] * REPEATED
        seen.add(run)
    expected = sum(covered) / len(letters) if letters else 0.0
    assert repetition(words) == pytest.approx(expected)


@given(st.text(max_size=200), st.sampled_from(["", "en", "hi", "zh"]))
def test_no_text_raises(text: str, language: str) -> None:
    reason_to_drop(Text(text, language), KNOBS)
    for rule in RULES[2:]:  # as a recipe without a least length would have it
        if text.split():
            rule(Text(text, language), KNOBS)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert (hash_words("Hello, WORLD! नदी में") == hash_words("hello world (नदी) में")).all()
    assert len(hash_words("नदी में पानी")) == 3
