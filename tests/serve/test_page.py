"""The chat page in Chromium, before the real server and an engine that says what a test wrote."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from puna.infer.engine import Output, Sampling, TokenLogprob
from puna.serve.guard import Access
from tests.serve.kit import BYTES, Scripted, serving, wait_for

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
TOLD = "<|start_header_id|>ipython<|end_header_id|>"
"""Before the result of a tool."""


class Likely(Scripted):
    """Gives each token 3 chances in 4, and `~` the rest."""

    def add(self, prompt: Sequence[int], sampling: Sampling, number: int = 0, grammar: Any = None) -> int:
        self.wanted = sampling.logprobs is not None
        return super().add(prompt, sampling, number)

    def step(self) -> list[Output]:
        outputs = super().step()
        for output in outputs if self.wanted else ():
            top = ((output.tokens[0], -0.2876820), (ord("~"), -1.3862943))
            output.logprobs = [TokenLogprob(output.tokens[0], top[0][1], top)]
        return outputs


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the test dependency playwright")
    if not shutil.which(CHROMIUM):
        pytest.skip("needs Chromium (apt install chromium)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    engines = Likely(), Likely()
    with serving(*engines, tools=["calculator"]) as served:
        served.engines = engines
        yield served


@pytest.fixture
def engine(server: SimpleNamespace) -> Likely:
    """The first model's engine, with nothing asked of it yet."""
    for engine in server.engines:
        engine.asked.clear()
        engine.aborted.clear()
        engine.script = lambda prompt, number: "Hello there!"
    return server.engines[0]


@pytest.fixture
def page(browser: Any, server: SimpleNamespace, engine: Likely) -> Iterator[Any]:
    """The page as a new visitor meets it; what its console or its policy complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(30_000)  # of a busy machine
    complaints: list[str] = []

    def heard(said: Any) -> None:
        expected = "/v1/" in said.location["url"] or said.type not in (
            "error",
            "warning",
        )  # replies that fail on purpose
        complaints.extend([] if expected else [said.text])

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda asked: None if asked.url.startswith((server.url, "data:")) else complaints.append(asked.url)
    )
    page.goto(server.url)
    page.wait_for_selector(".welcome")
    yield page
    context.close()
    assert not complaints


def say(page: Any, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")
    ended(page)


def ended(page: Any) -> None:
    page.wait_for_selector("#send[aria-label=Send]")
    page.wait_for_selector(".reply .figures")


def prompts(engine: Likely) -> list[str]:
    return [BYTES.decode(prompt) for prompt, _ in engine.asked]


def test_a_reply_is_drawn_and_none_of_it_becomes_an_element(page: Any, engine: Likely):
    evil = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    engine.script = lambda prompt, number: f"**Bold** {evil}\n\n```html\n{evil}\n```\n[x](javascript:alert(1)) é🦙"
    say(page, evil)
    assert page.locator(".prose strong").inner_text() == "Bold"
    assert page.locator(".bubble").inner_text() == evil
    assert page.locator(".prose").inner_text().count(evil) == 2
    assert page.locator("#log img, #log script, #log a").count() == 0
    assert page.locator(".prose").inner_text().endswith("[x](javascript:alert(1)) é🦙")
    assert page.title().startswith("<img src=x")


def test_calls_are_run_and_shown_as_steps(page: Any, engine: Likely):
    call = '{"name": "calculator", "parameters": {"expression": "17 + 25"}}'
    engine.script = lambda prompt, number: "It is **42**." if TOLD in BYTES.decode(prompt) else call
    say(page, "What is 17 plus 25?")
    assert page.locator(".call summary").inner_text().split() == ["calculator", "17", "+", "25", "→", "42"]
    page.click(".call summary")
    assert page.locator(".call pre").all_inner_texts() == ["17 + 25", "42"]
    assert page.locator(".step:last-child .prose").inner_text() == "It is 42."
    assert '"42"' in prompts(engine)[1]
    page.click("#open-settings")
    page.uncheck("#tools")
    say(page, "Again")
    assert page.locator(".call").count() == 1
    assert '"parameters": {"expression"' not in prompts(engine)[-1].rpartition("user<|end_header_id|>")[2]
    assert page.locator(".reply >> nth=1").locator(".prose").inner_text() == "It is 42."


def test_a_failed_call_is_told(page: Any, engine: Likely):
    call = '{"name": "calculator", "parameters": {"expression": "x"}}'
    engine.script = lambda prompt, number: "Sorry." if TOLD in BYTES.decode(prompt) else call
    say(page, "Work it out")
    assert "failed" in page.locator(".call summary").inner_text()
    assert "error: " in prompts(engine)[1]


def test_stop_frees_the_engine_and_keeps_what_was_said(page: Any, engine: Likely, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.gate, "wait", lambda _: not time.sleep(0.005))  # else a busy machine's page is too late
    engine.script = lambda prompt, number: "word " * 900
    page.fill("#message", "Talk")
    page.press("#message", "Enter")
    page.wait_for_function("() => document.querySelector('.prose')?.textContent.includes('word word word')")
    page.keyboard.press("Escape")
    ended(page)
    assert page.locator(".figures").inner_text() == "stopped"
    assert 2 < page.locator(".prose").inner_text().count("word") < 900
    wait_for(lambda: len(engine.aborted) == 1)


def test_answer_again_and_edit(page: Any, engine: Likely):
    answers = iter(["first", "second", "third", "fourth"])
    engine.script = lambda prompt, number: next(answers)
    say(page, "One")
    page.get_by_label("Answer again").click()
    ended(page)
    assert page.locator(".prose").all_inner_texts() == ["second"]
    say(page, "Two")
    page.locator(".user >> nth=0").hover()
    page.get_by_label("Edit the message").first.click()
    page.fill(".editor textarea", "Other")
    page.press(".editor textarea", "Enter")
    ended(page)
    assert page.locator(".bubble").all_inner_texts() == ["Other"]
    assert page.locator(".prose").all_inner_texts() == ["fourth"]
    assert "One" not in prompts(engine)[-1]


def test_settings_are_sent_and_kept_and_so_are_conversations(page: Any, engine: Likely):
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    for name, value in {"temperature": "1.5", "top_p": "0.5", "min_p": "0.1"}.items():
        page.locator(f"#{name}").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)
    for name, value in {"top_k": "7", "max_tokens": "5", "seed": "3", "stop": "END, ###"}.items():
        page.fill(f"#{name}", value)
    say(page, "Hi")
    sampling = engine.asked[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k) == (1.5, 0.5, 0.1, 7)
    assert (sampling.max_tokens, sampling.seed, sampling.stop, sampling.logprobs) == (5, 3, ("END", "###"), None)
    assert "Be brief." in prompts(engine)[0]
    assert page.locator(".figures").inner_text().startswith("cut off at the most tokens · 5 tokens")
    page.reload()
    page.click("#list .chat")
    assert page.locator(".prose").inner_text() == "Hello"
    page.click("#open-settings")
    assert page.input_value("#system") == "Be brief."
    page.click("#reset")
    assert (page.input_value("#system"), page.input_value("#top_k")) == ("", "")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_label("Delete Hi").click()
    page.wait_for_selector(".welcome")
    page.reload()
    assert page.locator("#list .chat").count() == 0


def test_tokens_show_what_else_might_have_stood_there(page: Any, engine: Likely):
    page.click("#open-settings")
    page.check("#odds")
    engine.script = lambda prompt, number: "ab é"
    say(page, "Hi")
    assert page.locator(".prose").inner_text().rstrip("·") == "ab é"
    page.hover(".token >> nth=1")
    rows = [row.split() for row in page.locator("#tip tr").all_inner_texts()]
    assert rows == [["b", "75", "%"], ["~", "25", "%"]]
    page.focus(".token >> nth=0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip .chosen td").first.inner_text() == "␣"
    page.get_by_label("Token probabilities").last.click()
    assert page.locator(".token").count() == 0
    assert page.locator(".prose p").inner_text() == "ab é"


def test_models_answer_side_by_side_and_read_their_own_replies(page: Any, server: SimpleNamespace):
    for name, engine in zip(("alpha", "beta"), server.engines):
        engine.script = lambda prompt, number, name=name: f"I am {name}"
    page.click("#models summary")
    page.locator("#model-list input").nth(1).check()
    page.keyboard.press("Escape")
    say(page, "Who are you?")
    page.wait_for_function("() => document.querySelectorAll('.figures').length == 2")
    assert page.locator(".reply header").all_inner_texts() == ["m0", "m1"]
    assert page.locator(".several .prose").all_inner_texts() == ["I am alpha", "I am beta"]
    say(page, "Sure?")
    page.wait_for_function("() => document.querySelectorAll('.figures').length == 4")
    for name, other, engine in zip(("alpha", "beta"), ("beta", "alpha"), server.engines):
        assert f"I am {name}" in prompts(engine)[1]
        assert f"I am {other}" not in prompts(engine)[1]


def test_it_can_be_used_by_keyboard_alone(page: Any):
    page.reload()
    page.wait_for_selector(".welcome")
    assert page.evaluate("document.activeElement.id") == "message"
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("you")
    page.keyboard.press("Enter")
    ended(page)
    assert page.locator(".bubble").inner_text() == "Hello\nyou"
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.value") == "Hello\nyou"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    assert page.evaluate("document.activeElement.id") == "system"
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()
    page.keyboard.press("n")
    page.wait_for_selector(".welcome")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("k")
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea")].filter(
            (e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.ariaHidden)
        ).length"""
    )
    assert nameless == 0
    first = "document.querySelector('a[href], button, input, textarea, summary').className"
    assert page.evaluate(first) == "skip"


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Any, engine: Likely):
    page.set_viewport_size({"width": 360, "height": 640})
    engine.script = lambda prompt, number: (
        "`" + "x" * 300 + "`\n\n| a | b |\n|--|--|\n| " + "wide " * 30 + "| y |\n\n" + "y" * 300
    )
    say(page, "z" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getElementById('scroller').scrollWidth <= 360")
    page.locator("#new").wait_for(state="hidden")
    page.click("#open-chats")
    page.click("#new")
    page.wait_for_selector(".welcome")
    page.wait_for_function("() => getComputedStyle(document.getElementById('chats')).visibility == 'hidden'")


def test_the_theme_is_the_systems_until_one_is_chosen(page: Any):
    def ground() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.emulate_media(color_scheme="dark")
    dark = ground()
    assert light != dark
    page.click("#theme")
    assert ground() == light
    page.reload()
    assert ground() == light
    page.click("#theme")
    page.click("#theme")
    assert ground() == dark


def test_an_error_is_shown_in_words(page: Any, engine: Likely):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#message", "Hi")
    page.press("#message", "Enter")
    assert page.locator(".reply .error").inner_text() == "The server cannot be reached. Is it still running?"
    body = {"error": {"message": "the server is full"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, body=json.dumps(body)))
    page.get_by_label("Answer again").click()
    page.wait_for_function("() => document.querySelector('.reply .error')?.textContent == 'the server is full'")


def test_a_key_is_asked_for_and_kept(browser: Any):
    with serving(Scripted(), access=Access("secret", local=False)) as server:
        page = browser.new_page()
        page.goto(server.url)
        for key in ("wrong", "secret"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.press("#key", "Enter")
        page.wait_for_selector(".welcome .starts")
        page.wait_for_function("() => document.getElementById('model-names').textContent == 'm0'")
        page.reload()
        say(page, "Hi")
        assert page.locator(".prose").inner_text() == "Hello there!"
        page.close()


MARKDOWN = [
    ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
    ("# A *b* #\n### C", "<h3>A <em>b</em></h3><h5>C</h5>"),
    ("**a** __b__ *c* _d_ ~~e~~ `f*g*`", None),
    ("2 * 3 * 4, snake_case_name, a**b", "<p>2 * 3 * 4, snake_case_name, a**b</p>"),
    ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    (r"\*a\* \\", r"<p>*a* \</p>"),
    ("``a`b``", "<p><code>a`b</code></p>"),
    ("- a\n- b\n  - c\n\ntext", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>text</p>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
    ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
    ("<b>&amp;</b>", "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;</p>"),
    ("a  \nb", "<p>a<br>b</p>"),
]


def test_markdown(page: Any):
    rendered = page.evaluate(
        """async (sources) => {
            const { Markdown } = await import("/markdown.js");
            return sources.map((source) => {
                const element = document.createElement("div");
                const whole = new Markdown(element);
                for (let end = 0; end <= source.length; end += 1) whole.show(source.slice(0, end));
                return element.innerHTML;
            });
        }""",
        [source for source, _ in MARKDOWN],
    )
    for (source, wanted), found in zip(MARKDOWN, rendered):
        tags = ("strong", "strong", "em", "em", "del", "code")
        texts = zip(tags, ("a", "b", "c", "d", "e", "f*g*"))
        wanted = wanted or "<p>" + " ".join(f"<{tag}>{text}</{tag}>" for tag, text in texts) + "</p>"
        assert found == wanted, source


def test_links_tables_and_code(page: Any):
    source = (
        "see https://a.example/x_y_z. [b](http://b.example)\n\n|a|b|\n|:-:|-:|\n|1|`2`|\n\n```py\nx = '```'\n\n# y\n```"
    )
    shown = page.evaluate(
        """async (source) => {
            const { Markdown } = await import("/markdown.js");
            const element = document.createElement("div");
            new Markdown(element).show(source);
            const texts = (what) => [...element.querySelectorAll(what)].map((e) => e.textContent);
            const all = (what, of) => [...element.querySelectorAll(what)].map(of);
            return {
                links: all("a", (a) => [a.href, a.textContent, a.rel.includes("noopener")]),
                cells: texts("th, td"),
                sides: all("td", (cell) => cell.className),
                code: texts("pre"),
                language: texts("figcaption span"),
            };
        }""",
        source,
    )
    assert shown == {
        "links": [["https://a.example/x_y_z", "https://a.example/x_y_z", True], ["http://b.example/", "b", True]],
        "cells": ["a", "b", "1", "2"],
        "sides": ["center", "right"],
        "code": ["x = '```'\n\n# y"],
        "language": ["py"],
    }


def test_no_text_makes_markdown_slow(page: Any):
    sources = [
        *(part * 20_000 for part in ("*", "_", "`", "[", "~", "#", ">", "|", "- ", "**a ", "[a](", "1. ")),
        "# a" + " " * 20_000 + "x",
        "\n".join(" " * i + "- a" for i in range(300)),
        "> " * 3000 + "a",
    ]
    milliseconds = page.evaluate(
        """async (sources) => {
            const { Markdown } = await import("/markdown.js");
            return sources.map((source) => {
                const begun = performance.now();
                new Markdown(document.createElement("div")).show(source);
                return performance.now() - begun;
            });
        }""",
        sources,
    )
    # a third of a second for the slowest; the bound tells a hang, not a speed
    assert max(milliseconds) < 60_000, [round(x) for x in milliseconds]


def test_the_page_says_built_with_llama_where_a_model_is(page: Any, server: SimpleNamespace):
    assert not page.is_visible("#notice")
    server.models[1].llama = "3.1"
    try:
        for width in (1280, 390):  # on a phone too
            page.set_viewport_size({"width": width, "height": 800})
            page.reload()
            page.wait_for_selector("#notice:visible")
            assert page.inner_text("#notice") == "Built with Llama"
    finally:
        server.models[1].llama = None
