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

THAI = (
    "เด็กๆ ในหมู่บ้านของเราไปโรงเรียนที่อยู่ริมแม่น้ำทุกวัน ครูเล่าให้ฟังว่าทำไมน้ำในแม่น้ำจึงมีมากขึ้นเมื่อถึงฤดูฝน และน้อยลงในฤดูร้อน "
    "หลังจากเรียนเสร็จแล้วทุกคนก็ไปที่ริมน้ำด้วยกัน เพื่อดูว่าน้ำไหลมาจากทางไหน เมื่อกลับถึงบ้านแต่ละคนวาดภาพและเขียนชื่อของตัวเองไว้ "
    "วันต่อมาครูจะติดภาพเหล่านั้นไว้บนผนังห้องเรียน ให้เพื่อนๆ ได้ดูและพูดคุยกัน"
)
CHINESE = (
    "村里的孩子们每天都去河边的学校上课。老师告诉他们，为什么春天的河水比夏天多，也告诉他们水是从哪里来的。下课以后，大家一起走到河边，"
    "看水往哪个方向流。回到家里，每个孩子都画了一张画，并且在上面写了自己的名字。"
    "第二天老师把这些画挂在教室的墙上，让所有的人都可以看到。"
)
JAPANESE = (
    "村の子どもたちは毎日、川のそばにある学校に通っています。先生は、なぜ春の川には夏よりも多くの水が流れるのかを説明しました。"
    "授業が終わると、みんなで川まで歩いて行き、水がどこから来るのかを見ました。"
    "家に帰ってから、一人ひとりが絵を描いて、自分の名前を書きました。"
    "次の日、先生はその絵を教室の壁に貼りました。"
)
RUSSIAN = (
    "Дети из нашей деревни каждый день ходят в школу, которая стоит на берегу реки. Учитель рассказал им, почему "
    "весной в реке больше воды, чем летом. После урока все вместе пошли к реке, чтобы посмотреть, откуда течёт вода. "
    "Когда они вернулись домой, каждый нарисовал картину и написал на ней своё имя, а на другой день учитель повесил "
    "их на стену."
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
    "thai": (THAI, "th"),
    "chinese": (CHINESE, "zh"),
    "japanese": (JAPANESE, "ja"),
    "russian": (RUSSIAN, "ru"),
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


def test_a_character_is_a_word_where_there_are_no_spaces() -> None:
    assert Text("老师说：read the README。", "zh").words == ["老", "师", "说", "：read", "the", "README。"]
    assert Text("นี้ ในแม่", "th").words == ["นี้", "ใ", "น", "แ", "ม่"]
    assert Text("老师 说", "en").words == ["老师", "说"]


@pytest.mark.parametrize(("text", "language"), [(THAI, "th"), (CHINESE, "zh"), (JAPANESE, "ja")])
def test_rules_without_spaces(text: str, language: str) -> None:
    letters = "".join(character for character in text if character.isalnum())
    assert reason_to_drop(Text(text[:40], language), KNOBS) == "too-few-words"
    assert reason_to_drop(Text("\n".join([text] * 4), language), KNOBS) == "repeated-lines"
    assert reason_to_drop(Text(f"{text}{text[:80] * 3}{text}", language), KNOBS) == "repeated-ngrams"
    assert reason_to_drop(Text("\n".join(letters[at : at + 3] for at in range(0, len(letters), 3)), language), KNOBS)
    assert reason_to_drop(Text(f"{text} {prose(1, 9)}", language), KNOBS) == "mixed-scripts"


def test_names_are_no_text_in_any_script() -> None:
    assert reason_to_drop(
        Text("山田太郎 鈴木一郎 高橋美咲 " * 3 + "佐藤健一 伊藤博文 渡辺謙二 山本五郎 中村花子 " * 6, "ja"), KNOBS
    )
    assert filters.few_stop_words(Text("東京大阪名古屋京都神戸横浜" * 9, "zh"), KNOBS) == "few-stop-words"
    assert filters.few_stop_words(Text("กรุงเทพเชียงใหม่ภูเก็ต" * 9, "th"), KNOBS) == "few-stop-words"


def test_thresholds_of_one_language() -> None:
    strict = Corpus(per_language={"de": {"min_words": 500}, "th": {"max_words": 10}})  # pyright: ignore[reportCallIssue]
    assert reason_to_drop(Text(prose(1), "en"), strict) is None
    assert filters.too_short(Text(prose(1), "de"), strict.rules_for("de"))
    assert reason_to_drop(Text(prose(1), "de"), strict) == "too-few-words"
    assert reason_to_drop(Text(THAI, "th"), strict) == "too-many-words"
    assert strict.rules_for("th").min_words == KNOBS.rules_for("th").min_words == 160  # what is not given stays
    changed = strict.model_copy(update={"min_mean_word_length": 9.0})
    assert changed.rules_for("de").min_mean_word_length == 9.0
    assert changed.rules_for("th").min_mean_word_length == 0.0


def test_a_threshold_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"hi: min_word: there is no such knob; did you mean corpus.min_words\?"):
        Corpus(per_language={"hi": {"min_word": 3}})  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match=r"hi: min_script_fraction = 2\.0: input should be less than or equal to 1"):
        Corpus(per_language={"hi": {"min_script_fraction": 2}})  # pyright: ignore[reportCallIssue]


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


@given(st.text(max_size=200), st.sampled_from(["", "en", "hi", "th", "zh"]))
def test_no_text_raises(text: str, language: str) -> None:
    reason_to_drop(Text(text, language), KNOBS)
    for rule in RULES[2:]:  # as a recipe without a least length would have it
        if text.split():
            rule(Text(text, language), KNOBS)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert (hash_words("Hello, WORLD! नदी में") == hash_words("hello world (नदी) में")).all()
    assert len(hash_words("नदी में पानी")) == 3
