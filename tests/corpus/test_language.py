"""Language identification, and the part of the mix."""

import pytest

from puna.corpus.language import check_languages, identify
from puna.corpus.parts import part_of
from puna.errors import PunaError

SENTENCES = {
    "de": "Der Lehrer erklärt den Kindern, warum der Fluss im Frühling mehr Wasser führt als im Sommer.",
    "en": "The teacher explains to the children why the river carries more water in spring than in summer.",
    "es": "El maestro explica a los niños por qué el río lleva más agua en primavera que en verano.",
    "fr": "Le professeur explique aux enfants pourquoi la rivière porte plus d'eau au printemps qu'en été.",
    "hi": "शिक्षक बच्चों को समझाते हैं कि नदी में गर्मियों की तुलना में वसंत में अधिक पानी क्यों होता है।",
    "it": "Il maestro spiega ai bambini perché il fiume porta più acqua in primavera che in estate.",
    "pt": "O professor explica às crianças por que o rio leva mais água na primavera do que no verão.",
    "ja": "先生は、なぜ川の水が夏より春に多いのかを子どもたちに説明します。",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_languages_are_told_apart(code: str) -> None:
    language, score = identify(SENTENCES[code])
    assert language == code
    assert 0.5 < score <= 1


def test_the_middle_of_a_long_text_counts() -> None:
    assert identify(SENTENCES["en"] + SENTENCES["de"] * 100)[0] == "de"


def test_unknown_codes_are_refused() -> None:
    check_languages(["en", "hi"])
    with pytest.raises(PunaError, match=r"corpus.languages: 'xx' cannot be recognised; use some of .*\ben\b"):
        check_languages(["en", "xx"])


PROSE = SENTENCES["en"] * 10
MATH = r"Let x be a vector. The integral \int f and the polynomial \sum a are given by the theorem below. " * 10
CODE = "import os\n\ndef f(x):\n    return x;\n\nfor item in items:\n    print(item)\n" * 5


@pytest.mark.parametrize(
    ("text", "language", "folder", "part"),
    [
        (PROSE, "en", None, "general"),
        (MATH, "en", None, "math"),
        (CODE, "en", None, "code"),
        (PROSE, "en", "code", "code"),  # the folder is believed
        (MATH, "fr", "math", "multilingual"),  # but not on English
        (PROSE, "en", "multilingual", "general"),
    ],
)
def test_parts(text: str, language: str, folder: str | None, part: str) -> None:
    assert part_of(text, language, folder) == part
