"""The compiled passes do what the Python ones do, on any page."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree

from puna.corpus.extract import UnusablePageError
from puna.corpus.extract.metadata import Claims
from puna.corpus.extract.network import Network, load_network
from puna.corpus.extract.passes import CompiledPasses, Passes, make_passes

from .conftest import page, prose

COMPILED = load_network().passes
PURE = Passes(COMPILED.markup, COMPILED.openings)
KINDS = (True, False, False, False, False, False)
pytestmark = pytest.mark.skipif(
    not isinstance(COMPILED, CompiledPasses), reason="the compiled passes were not built: no C compiler"
)


def read(passes: Passes, html: str, title: str) -> tuple:
    """Everything that the passes make of a page, in comparable form."""
    head, body = passes.head_and_body(str(HTMLTree.parse(html)))
    said = body.encode() if isinstance(body, str) else body
    try:
        blocks, containers = passes.read_blocks(body)
    except UnusablePageError as error:
        return head, said, str(error)
    rows, openings = passes.measure(blocks, title) if blocks else (np.zeros(0), np.zeros(0))
    levels = passes.enclosing(containers)
    kin = passes.alike(blocks, containers) if blocks else np.zeros(0)
    kinds = {type(value) for block in blocks for value in block}
    return (
        head,
        said,
        blocks,
        kinds,
        containers.tolist(),
        rows.tolist(),
        openings.tolist(),
        levels.tolist(),
        kin.tolist(),
    )


def compare(html: str, title: str = "A title of some length") -> None:
    assert COMPILED.unclosed(html, 2) == PURE.unclosed(html, 2)
    found = read(COMPILED, html, title)
    assert found == read(PURE, html, title)
    if len(found) > 3 and found[2]:
        rows, kin = np.array(found[5], np.int32), np.array(found[8], np.int32)
        known = rows, kin, np.array(found[4], np.int32), np.array(found[7], np.int32)
        np.testing.assert_allclose(COMPILED.numbers(*known), PURE.numbers(*known), 1e-6, 1e-6)


def test_fragments() -> None:
    texts = [path.read_text("utf-8") for path in sorted((Path(__file__).parent / "retention").glob("*.txt"))]
    for fragment in "".join(texts).split("=== ")[1:]:
        compare(f"<main><p>{prose(1)}</p>{fragment}<p>{prose(2)}</p></main>", prose(1))


@pytest.mark.parametrize(
    "html",
    [
        "",
        page(prose(3), "title").decode(),
        "<div>" * 2500 + "text",
        "<b>" * 2500 + "text",
        "<p class='\u01c5sr-only mainMENUBar' id=A1bcD role='NAV'>\u3000text",
        "<p style='white-space:\u00a0pre ; display: \n none'> a <br><br> b</p>",
        '<pre> a\n<br>\n b</pre><xmp><a "<p></body></body></div></xmp>after',
        "a<br> <br>b<br>\x1f<br>c &nbsp; &amp;lt; &lt;<img alt=':-)'><img alt=' a  long \u00fcber text'>",
        "<!--<body>--><script>'<body>'</script><p title='a > <b> hidden x'>text<math><mi>x",
        "<table><tr><td>1<td>2<tr><td>3</table><dl><dt>a<dd>b</dl><a>link <b>bold</b> \u0130 \u00df</a>",
    ],
)
def test_odd_pages(html: str) -> None:
    compare(html)


TAGS = "<pre> </pre> <br> <xmp> </body> <noscript> </a> <hr> <td> <span> </span> <li> <p> <math> <!-- --> </script>"
PIECES = [*TAGS.split(), *"<>\"'=/ ", "&amp;", "\u00a0", "\u3000", "\x1f", "\x85", "\u00e9", "word", "Related:"]
PIECES += [
    "<script type='math/tex'>x",
    "<a hidden class='MainMenuBAR xY'>",
    "<img alt='\\frac'>",
    "<img alt='Some \u00fc'>",
]
PIECES += ["\u0130stanbul", "\u01c5", "\U0001d538", "\u00abPosted\u00bb"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)))
def test_any_markup(pieces: list[str]) -> None:
    compare("".join(pieces))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text(text: str, title: str) -> None:
    text, title = (value.encode("utf-8", "replace").decode() for value in (text, title))
    compare(f"<p class='{text}'>{text}<a>{text}</a>", title)


OPENED = ["<", "</", "b", "B", "BIG", "code", "strike", "stri\u212ae", "u", "s", "\u017f", " ", ">", "\n"]


@given(st.lists(st.sampled_from(OPENED)))
def test_tags_left_open(pieces: list[str]) -> None:
    html = "".join(pieces)
    assert COMPILED.unclosed(html, 1) == PURE.unclosed(html, 1)


@pytest.mark.parametrize("paragraphs", [1, 2, 5, 40])
def test_the_network(paragraphs: int) -> None:
    body = "".join(f"<div class='post'><p>{prose(i)}</p><a href=x>Related: {i}</a></div>" for i in range(paragraphs))
    blocks, containers = COMPILED.read_blocks(COMPILED.head_and_body(str(HTMLTree.parse(body)))[1])
    network = load_network()
    claims = Claims("A title", [prose(0)], KINDS)
    likely = network.probabilities(blocks, containers, claims)
    np.testing.assert_allclose(likely, Network(PURE, network.layers).probabilities(blocks, containers, claims), 1e-4)


def test_a_network_of_another_width() -> None:
    blocks, containers = COMPILED.read_blocks(COMPILED.head_and_body(str(HTMLTree.parse(f"<p>{prose(1)}")))[1])
    narrow = {name: np.zeros(layer.shape, np.float32) for name, layer in load_network().layers.items()}
    narrow |= {name: narrow[name][..., :9] for name in ("numbers", "hints", "near", "openings", "first_bias")}
    narrow |= {"conv": narrow["conv"][..., :9, :9], "conv_bias": narrow["conv_bias"][:, :9]}
    narrow |= {"page": narrow["page"][:18, :9], "page_bias": narrow["page_bias"][:9], "last": narrow["last"][:9]}
    assert Network(COMPILED, narrow).probabilities(blocks, containers, Claims("", [], KINDS)).tolist() == [0.5] * len(
        blocks
    )


def test_a_larger_vocabulary_is_read_in_python() -> None:
    markup = type(COMPILED.markup)({f"word{chr(97 + i)}": i for i in range(300)})
    assert type(make_passes(markup, COMPILED.openings)) is Passes
