"""From bytes to text: encodings, mathematics, code, and what is left out."""

import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.extract import MAX_DEPTH, UnusablePageError, decode, extract, tidy
from puna.corpus.extract.blocks import read_blocks
from puna.corpus.extract.features import told
from puna.corpus.extract.markup import Markup
from puna.corpus.extract.metadata import Claims, find_claims

from .conftest import page, prose

CYRILLIC = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 8


@pytest.mark.parametrize(
    ("html", "charset", "expected"),
    [
        ("Straße, naïve café".encode(), None, "Straße, naïve café"),
        (b"\xef\xbb\xbf" + "café".encode(), "latin-1", "café"),  # the mark wins over the header
        (b"\xff\xfe" + "café".encode("utf-16-le"), None, "café"),
        (b"\xfe\xff" + "café".encode("utf-16-be"), None, "café"),
        ("café".encode("latin-1"), "ISO-8859-1", "café"),
        ("“café”".encode("cp1252"), "ISO-8859-1", "“café”"),  # as browsers read latin-1
        ("<meta charset=shift_jis><p>日本語の文書".encode("shift_jis"), None, "日本語の文書"),
        (f"<meta charset=windows-1251>{CYRILLIC}".encode("cp1251"), None, "французских булок"),
        (CYRILLIC.encode("koi8-r"), "koi8-r", "французских булок"),
        (CYRILLIC.encode("cp1251"), None, "французских булок"),  # guessed
        ('<?xml version="1.0" encoding="iso-8859-2"?><p>żółw'.encode("iso-8859-2"), None, "żółw"),
        ("café".encode(), "no-such-charset", "café"),
        (b"<p>caf\xe9 \xff\xfe", "utf-8", "caf"),
    ],
)
def test_encodings(html: bytes, charset: str | None, expected: str) -> None:
    assert expected in decode(html, charset)


def test_menus_and_footers_go_and_prose_stays() -> None:
    text = prose(3) + "\n\n" + prose(4)
    found = extract(page(text, "The  title\n").decode())
    assert found.title == "The title"
    assert found.text in (text, f"The title\n\n{text}")


def test_code_keeps_its_lines_and_indentation() -> None:
    code = "def f(x):\n    if x:\n        return 1\n\n    return {'a': [2]}"
    found = extract(f"<main><p>{prose(1)}</p><pre><code>{code}</code></pre><p>{prose(2)}</p></main>")
    assert code in found.text


def test_mathematics_is_kept_once() -> None:
    mathml = (
        "<math><semantics><mrow><mi>E</mi><mo>=</mo><mi>m</mi></mrow>"
        '<annotation encoding="application/x-tex">E=mc^2</annotation></semantics></math>'
    )
    html = (
        f"<main><p>{prose(1)} So {mathml} and <script type='math/tex'>a_1</script> and "
        r"<img class='math' alt='\frac{1}{2}' src='1.png'> and <img alt='$n$' src='2.png'> "
        f"but <img alt='a cat' src='3.png'> {prose(2)}</p>"
        "<p><script type='math/tex; mode=display'>x^2</script></p></main>"
    )
    text = extract(html).text
    assert text.count("$E=mc^2$") == text.count("E=m") == 1
    for tex in ("$a_1$", r"\frac{1}{2}", "$n$", "$$x^2$$"):
        assert tex in text
    assert "cat" not in text


def test_no_marks_are_added() -> None:
    one, two, three, four = (prose(i) for i in range(4))
    head = "<h2>Head<a class='headerlink'>¶</a></h2>"
    lists = f"<ul><li>{two}<li>{three}</ul><ol><li>{four}</ol>"
    text = extract(f"<main><h1>Rivers</h1><p>{one}</p>{head}{lists}</main>").text
    lines = [line.strip() for line in text.splitlines() if line.strip() not in ("", "Rivers")]
    assert lines == [one, "Head", two, three, four]


def test_what_a_page_says_about_its_content():
    html = """<script type="application/ld+json">{"@graph": [{"@type" : "NewsArticle"}, {"@type":"Question"}]}</script>
    {"@type": "Product"}<script type="application/ld+json">{"@type": "WebSite"}"""
    text = prose(0)
    values = {"og:type": "og:product.item", "og:description": text[:80] + "...", "description": "Short"}
    claims = find_claims(html, "A title", values)
    assert claims == Claims("A title", [text[:80] + "...", "Short"], (False, True, False, True, False, True))
    assert find_claims("", "", {}) == Claims("", ["", ""], (False,) * 6)
    paragraphs = ("Short", f"Said: {text}", text[:50], text[1:60], "More.")
    rows = told(blocks := read_blocks("".join(f"<p>{each}</p>" for each in paragraphs), Markup({}))[0], claims)
    assert rows[:, 2:].tolist() == [[0, 1, 0, 1, 0, 1]] * 5
    assert rows[:, 0].tolist() == [0, 1, 1, 1, 0], "the second begins as it does, the others are within it"
    assert rows[:, 1].tolist() == [-1, 0, 1, 1, 1]
    assert not told(blocks, Claims("", ["", "Short"], (False,) * 6)).any()


HEAD = """<!doctype html><html lang="pt-BR"><head><title> A  title
</title><link rel="canonical" href="/a?x=1&amp;y=2"><script type="application/ld+json">
{"@type": "NewsArticle", "articleBody": "<body><p>not this</p>", "datePublished": "2019-11-18T17:36:00Z"}</script>
<meta property="article:modified_time" content="2024-01-01"></head>"""


def test_what_the_head_says() -> None:
    found = extract(f"{HEAD}<body><main><p>{prose(1)}</p><p>{prose(2)}</p></main></body></html>", "https://e.org/b")
    assert (found.title, found.date, found.language) == ("A title", "2019-11-18", "pt")
    assert found.url == "https://e.org/a?x=1&y=2"
    assert found.text == f"{prose(1)}\n\n{prose(2)}"


def test_half_a_character_does_no_harm() -> None:
    assert extract(f"<p>{prose(1)} \ud800").text == f"{prose(1)} ?"


def test_without_a_head() -> None:
    found = extract(f"<p>{prose(1)}</p>".encode(), "https://e.org/b", charset="utf-8")
    assert (found.title, found.date, found.language, found.url) == ("", None, None, "https://e.org/b")
    assert found.text == prose(1)


@pytest.mark.parametrize(
    "date", ["2024-13-45", "yesterday", "", "0000-00-00"], ids=["no month", "word", "empty", "no year"]
)
def test_a_date_that_is_none(date: str) -> None:
    assert extract(f"<head><meta name='date' content='{date}'></head><p>{prose(1)}").date is None


@pytest.mark.parametrize(
    "broken",
    [
        """<p class="a"">{}</p><div>""",
        """<a href="x" title="5" wide">y</a><p>{}</p>""",
        "<p>{}<p><b><i></b></i><table><p></table></div></span></body></html>",
        "<svg><svg></svg><p>out</p></svg><p>{}</p>",
        '<p title="a > b">{}</p>',
    ],
)
def test_broken_markup_loses_no_text(broken: str) -> None:
    assert prose(5) in extract(f"<main><p>{prose(1)}</p>{broken.format(prose(5))}<p>{prose(2)}</p></main>").text


def test_what_a_page_writes_twice_is_kept_once() -> None:
    one = f"<div class='desktop'><p>{prose(1)}</p></div>"
    text = extract(f"<main>{one}<p>{prose(2)}</p>{one.replace('desktop', 'mobile')}<p>{prose(3)}</p></main>").text
    assert text.count(prose(1)) == 1


def test_xhtml_with_empty_scripts() -> None:
    html = f'<?xml version="1.0"?><html><head><title/><script src="a.js"/></head><body><p>{prose(1)}</p></body></html>'
    assert prose(1) in extract(html).text


def test_a_page_of_endless_depth_is_refused_at_once() -> None:
    with pytest.raises(UnusablePageError, match="elements in each other"):
        extract("<div>" * 200_000 + "text")
    sentences = [prose(i, 2) for i in range(MAX_DEPTH)]
    found = extract("".join(f"<div><p>{sentence}</p></div>" for sentence in sentences))
    assert sum(sentence in found.text for sentence in sentences) > MAX_DEPTH / 5, "a broad page is no deep one"


def test_markup_that_multiplies_is_refused_at_once() -> None:
    with pytest.raises(UnusablePageError, match="50,000 <font> are never closed"):
        extract("".join(f"<p><font size='{i}'>text" for i in range(50_000)))


def test_tidy() -> None:
    assert tidy("a \t\nb\n\n\n\n c\x00\u200bd\xa0e\r\nf\n\n") == "a\nb\n\n cd e\nf"
    assert "\u0301" in tidy("e\u0301"), "accents are no control characters"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "utf-16", "gbk", "nonsense"]))
def test_no_bytes_raise(content: bytes, charset: str | None) -> None:
    extract(decode(b"<html><body>" + content, charset))
    extract(decode(content, charset))


MARKUP = ["<math>", "<annotation encoding='application/x-tex'>", "<script type='math/tex'>", "</script>", "<p>"]
MARKUP += ["<img alt='\\x'>", "</math>", "text", "<table>", "</div>", "<!--", "]]>", "&#0;", "<body>", "</html>"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(MARKUP)))
def test_no_markup_raises(pieces: list[str]) -> None:
    extract(" ".join(pieces))


def test_articles_against_their_gold_text(shared_data) -> None:
    """Words of the article found, and words that are of the article: resiliparse itself reaches .98 and .88."""
    import json

    recall = precision = count = 0
    with lzma.open(shared_data("web_html/scrapinghub_aeb.jsonl.xz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found, gold = set(extract(row["html"]).text.split()), set(row["gold_text"].split())
            if gold:
                recall += len(found & gold) / len(gold)
                precision += len(found & gold) / max(1, len(found))
                count += 1
    assert recall / count > 0.95
    assert precision / count > 0.80
