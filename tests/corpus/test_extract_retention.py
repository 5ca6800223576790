"""What the recipe cares for is kept, once each: code, mathematics, alternative text, tables.

The fragments of retention/*.txt were written for this test, in the style of what real tools write. Each has a name
("=== ..."), its HTML, and snippets that the text of the page must hold exactly once ("--- once") or not ("--- never").
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.corpus.extract import extract

from .conftest import prose

ARTICLE = """<!doctype html><html lang="en"><head><title>Over the bridge</title></head>
<body class="post-template single"><header class="site-header"><a href="/">Andes Daily</a>
<nav class="main-menu"><ul><li><a href="/n">News</a></li><li><a href="/t">Travel</a></li></ul></nav></header>
<main id="content"><article class="post"><h1>Over the bridge</h1>
<p>{before}</p>{fragment}<p>{after}</p></article></main>
<footer class="site-footer"><p>© 2024 Andes Daily. All rights reserved.</p><a href="/p">Privacy</a></footer>
</body></html>"""

MANUAL = """<!DOCTYPE html><html><head><title>3. Crossing — Llama 2.1 documentation</title></head><body>
<div class="related" role="navigation"><ul><li><a href="i.html">index</a></li>
<li><a href="n.html">next</a> |</li></ul></div>
<div class="document"><div class="documentwrapper"><div class="bodywrapper"><div class="body" role="main">
<section id="crossing"><h1>3. Crossing</h1><p>{before}</p>{fragment}<p>{after}</p></section></div></div></div>
<div class="sphinxsidebar" role="navigation"><div class="sphinxsidebarwrapper"><h4>Previous topic</h4>
<p><a href="p.html">Walking</a></p></div></div></div>
<div class="footer" role="contentinfo">© Copyright 2024. Created using Sphinx.</div></body></html>"""

FURNITURE = ("News", "Travel", "rights reserved", "Privacy", "index", "Previous topic", "Created using")


def fragments() -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Name, HTML, and pairs of "once" or "never" and a snippet."""
    for path in sorted((Path(__file__).parent / "retention").glob("*.txt")):
        for part in path.read_text("utf-8").split("=== ")[1:]:
            name, _, rest = part.partition("\n")
            html, *snippets = rest.split("\n--- ")
            pairs = [snippet.split("\n", 1) for snippet in snippets]
            yield f"{path.stem}: {name}", html, [(kind, snippet.strip("\n")) for kind, snippet in pairs]


FRAGMENTS = {name: (html, expected) for name, html, expected in fragments()}


def test_there_are_enough_fragments() -> None:
    assert len(FRAGMENTS) >= 50


@pytest.mark.parametrize("template", [ARTICLE, MANUAL], ids=["article", "manual"])
@pytest.mark.parametrize("name", FRAGMENTS)
def test_kept_once(name: str, template: str) -> None:
    fragment, expected = FRAGMENTS[name]
    text = extract(template.format(before=prose(1, 4), fragment=fragment, after=prose(2, 4))).text
    for kind, snippet in expected:
        assert text.count(snippet) == (kind == "once"), f"{snippet!r} {kind} in {text!r}"
    assert text.count(prose(1, 4)) == text.count(prose(2, 4)) == 1
    assert not [word for word in FURNITURE if word in text]
