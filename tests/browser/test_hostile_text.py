"""A thousand hostile strings drawn in a real browser: shown as they are, none executed, none fetched."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.doubles import scored_token
from tests.drawing import Running, Stored
from uqchat.host import HostStatus
from uqchat.host_estimators import Offer
from uqchat.render import (
    RiskView,
    claims_html,
    conversation_html,
    inspector_html,
    live_answer_html,
    tokens_to_html,
    welcome_html,
)
from uqchat.types import Alternative, ScoredToken
from uqchat.ui.estimators_html import estimators_html, heads_html

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

COUNT = 1000
PIECES = (
    "<script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    "<img src='http://evil.test/a.png'>",
    "![x](http://evil.test/b.png)",
    "[x](javascript:window.ran=1)",
    "<svg onload=window.ran=1>",
    "${window.ran=1}",
    "`+(window.ran=1)+`",
    "{{window.ran=1}}",
    "{{{x}}}",
    "\\${window.ran=1}",
    "</span></div></article>",
    "<!--",
    "-->",
    "]]>",
    "<![CDATA[",
    '"\' onmouseover=window.ran=1 x="',
    "javascript:window.ran=1",
    "<iframe src=//evil.test>",
    "<a href=http://evil.test>a</a>",
    "<style>@import 'http://evil.test/c.css'</style>",
    "<link rel=stylesheet href=//evil.test>",
    "<meta http-equiv=refresh content='0;url=http://evil.test'>",
    "<base href=http://evil.test>",
    "<form action=//evil.test>",
    "<math><mtext></mtext><mglyph><style><img src=x onerror=window.ran=1>",
    "<noscript><p title='</noscript><img src=x onerror=window.ran=1>'>",
    "<template><img src=x onerror=window.ran=1></template>",
    "<textarea><plaintext>",
    "<details open ontoggle=window.ran=1>",
    "&lt;script&gt;",
    "&#60;img src=x onerror=window.ran=1&#62;",
    "&amp;amp;",
    "&",
    "<",
    ">",
    "\u202eright to left\u202c",
    "\u2066x\u2069",
    "مرحبا",
    "שלום",
    "\r\n",
    "\r",
    "\t",
    "\n\n",
    "\0",
    "\x08",
    "\x80",
    "\x9f",
    "\u2028",
    "\ufeff",
    "\u200b",
    "👩‍👩‍👧",
    "e\u0301",
    "𝔘",
    "<https://evil.test>",
    "https://evil.test/auto",
    "[r]: http://evil.test/d.png\n\n![r]",
    "# heading",
    "**bold**",
    "```html\n<script>window.ran=1</script>\n```",
    "> quote",
    "| a | b |\n|---|---|\n| <b> | `x` |",
    "<x-y z>",
    "<ScRiPt>window.ran=1</ScRiPt>",
    "%3Cscript%3E",
    "\\u003cscript>",
    "$$\\href{javascript:window.ran=1}{x}$$",
    "a",
)

PAGE = """<!doctype html><meta charset="utf-8"><title>hostile</title><main id="at"></main><script>
window.ran = 0;
for (const name of ["alert", "confirm", "prompt", "open"]) window[name] = () => { window.ran = 1; };
// As gr.HTML does it: the value goes through a template function of its own, then in as HTML.
const draw = new Function("value", "return `${value}`");
window.show = (html, selector) => {
  const at = document.getElementById("at");
  at.innerHTML = draw(html);
  for (const folded of at.querySelectorAll("details")) folded.open = true;
  for (const one of at.querySelectorAll("*")) one.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
  return [...at.querySelectorAll(selector)].map((one) => one.textContent);
};
</script>"""


class _OnePage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802  (the name that http.server calls)
        is_page = self.path == "/"
        self.send_response(200 if is_page else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE.encode() if is_page else b"")

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def address() -> Iterator[str]:
    """Where the page is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OnePage)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def requests(page: Page, address: str) -> list[str]:
    """Every request after the page itself has come."""
    page.goto(address)
    page.wait_for_load_state("networkidle")
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    return seen


def hostile_strings() -> list[str]:
    """The same thousand in every run: each piece alone, then mixtures."""
    chance = random.Random(2)
    mixed = ["".join(chance.choices(PIECES, k=chance.randint(2, 6))) for _ in range(COUNT - len(PIECES))]
    return [*PIECES, *mixed]


def as_tokens(text: str, chance: random.Random, is_reasoning: bool = False) -> tuple[ScoredToken, ...]:
    """The text cut anywhere, also in the middle of a tag."""
    cuts = sorted({0, len(text), *(chance.randrange(len(text) + 1) for _ in range(4))})
    tokens = []
    for index, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        piece = text[start:end]
        token = scored_token(index, piece, start, is_reasoning=is_reasoning)
        tokens.append(replace(token, alternatives=(*token.alternatives, Alternative(7, text, -3.0))))
    return tuple(tokens)


def as_shown(text: str) -> str:
    """What a browser can hold of it: HTML parsers drop NUL."""
    return text.replace("\0", "")


def show(page: Page, markups: list[str], selector: str) -> list[list[str]]:
    """Draws each in turn and returns the text of what the selector finds."""
    return page.evaluate(
        "([list, selector]) => JSON.parse(list).map((html) => window.show(html, selector))",
        [json.dumps(markups), selector],
    )


def assert_nothing_happened(page: Page, requests: list[str], address: str) -> None:
    """No script ran, nothing was asked for, nobody went anywhere."""
    page.wait_for_timeout(300)  # time for a picture or a redirect to start
    assert page.evaluate("window.ran") == 0
    assert requests == []
    assert page.url == address


def test_the_watch_is_awake(page: Page, requests: list[str]) -> None:
    """Without escaping, the same page does run and fetch."""
    show(page, ["<img src=x onerror=window.ran=1>"], "img")
    page.wait_for_function("window.ran === 1")
    assert requests


@pytest.mark.parametrize("is_reasoning", [False, True])
@pytest.mark.parametrize("is_streaming", [False, True])
def test_an_answers_text_is_shown_exactly(
    page: Page, requests: list[str], address: str, is_streaming: bool, is_reasoning: bool
) -> None:
    chance, texts = random.Random(3), hostile_strings()
    tokens = [as_tokens(text, chance, is_reasoning) for text in texts]
    drawn = [tokens_to_html(one, RiskView(), text, (), is_streaming) for one, text in zip(tokens, texts, strict=True)]
    assert show(page, drawn, ".uq-text") == [[as_shown(text)] for text in texts]
    assert_nothing_happened(page, requests, address)


def test_a_conversation_and_an_answer_under_way_show_it_exactly(page: Page, requests: list[str], address: str) -> None:
    chance, texts = random.Random(4), hostile_strings()
    drawn = []
    for text in texts:
        answer = Stored(
            "assistant", text, id=text, tokens=as_tokens(text, chance), model=text, status="error", error=text
        )
        question = Stored("user", text, id=text)
        drawn.append(
            conversation_html([question, answer], RiskView())
            + live_answer_html(Running(answer.tokens), RiskView(), text)
        )
    assert show(page, drawn, ".uq-text") == [[as_shown(text)] * 3 for text in texts]
    assert_nothing_happened(page, requests, address)


def test_the_inspector_and_the_questions_run_and_fetch_nothing(page: Page, requests: list[str], address: str) -> None:
    chance, texts = random.Random(5), hostile_strings()
    drawn = []
    for text in texts:
        tokens = as_tokens(text, chance)
        drawn.append(inspector_html(tokens[0], tokens, RiskView(), text) + welcome_html({text: [text]}))
    assert show(page, drawn, ".uq-ask") == [[as_shown(text)] for text in texts]
    assert show(page, drawn, "main > :not(.uq-inspect, .uq-welcome)") == [[]] * COUNT
    assert_nothing_happened(page, requests, address)


def test_claims_remarks_and_cards_show_it_exactly_and_run_nothing(
    page: Page, requests: list[str], address: str
) -> None:
    chance, texts, drawn = random.Random(7), hostile_strings(), []
    for number, text in enumerate(texts):
        view = RiskView(mode="entity" if number % 2 else "sentence")
        tokens = as_tokens(text, chance)
        answer = Stored("assistant", text, id=text, tokens=tokens)
        offer = Offer(text, text, refusal=text, card=text, notes=(text,), scope=text, is_added=True)
        status = HostStatus("ready", text, text, offers=(offer,), adding_error=text)
        drawn.append(
            conversation_html([answer], view, remarks={text: text})
            + claims_html(tokens, view, text)
            + estimators_html(status, can_change=True)
            + heads_html(text, is_ready=True)
        )
    assert show(page, drawn, ".uq-text, .uq-remark, .uq-refusal") == [[as_shown(text)] * 3 for text in texts]
    allowed = ".uq-messages, .uq-claims, .uq-heads"
    assert show(page, drawn, f"main > :not({allowed})") == [[]] * COUNT
    assert_nothing_happened(page, requests, address)


def test_markdown_runs_and_fetches_nothing(page: Page, requests: list[str], address: str) -> None:
    chance, view = random.Random(6), RiskView(mode="markdown")
    drawn = [tokens_to_html(as_tokens(text, chance), view, "m") for text in hostile_strings()]
    dangerous = (
        "script, img, iframe, svg, style, link, meta, base, form, object, embed, [onerror], [onload], [onmouseover]"
    )
    assert show(page, drawn, f":is({dangerous}, a:not([rel~='nofollow']), a:not([href^='http']))") == [[]] * COUNT
    assert_nothing_happened(page, requests, address)
