"""Text made safe for HTML, numbers made readable, and Markdown without pictures. Knows no token and no page.

Everything a model or a person wrote passes through `encode` or `markdown_to_html` before it reaches the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt

# `$ { } \ `` are harmless in HTML, but a page that feeds a value to a template engine would run them. A carriage
# return would be turned into a newline by the HTML parser. Other control characters stay as they are: a numeric
# reference to them means something else (windows-1252) to HTML parsers.
_REFERENCES = {ord(c): f"&#{ord(c)};" for c in "&<>\"'`${}\\\r"} | {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
}
_TEMPLATE_CHARACTERS = {ord(c): f"&#{ord(c)};" for c in "`${}\\"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BREAK_SPACE = "\u00a0"
_VISIBLE_WHITESPACE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\0": "␀"}


def encode(text: str) -> str:
    """`text` for HTML content or a quoted attribute; `html.unescape` gives it back exactly.

    A lone surrogate, which no wire format can carry, becomes U+FFFD. An HTML parser drops NUL.
    """
    return _LONE_SURROGATE.sub("\ufffd", text).translate(_REFERENCES)


def visible_whitespace(text: str) -> str:
    """`text` with spaces, tabs and newlines as signs, for a place where a lone space must be seen."""
    if not text.strip():
        return "".join(_VISIBLE_WHITESPACE.get(c, c) for c in text)
    head = len(text) - len(text.lstrip())
    tail = len(text.rstrip())
    marked = [_VISIBLE_WHITESPACE.get(c, c) if i < head or i >= tail or c != " " else c for i, c in enumerate(text)]
    return "".join(marked)


def quoted(text: str) -> str:
    """`text` in quotation marks, trimmed of outer spaces unless nothing else is left; plain text, not HTML."""
    return f"“{text.strip() or visible_whitespace(text)}”"


def shortened(text: str, limit: int = 40) -> str:
    """The text without outer spaces and points, cut where it is longer than `limit` characters; plain text."""
    bare = text.strip().strip(",.;:") or text
    return bare if len(bare) <= limit else bare[:limit].rstrip() + "…"


def percent(share: float, is_short: bool = False) -> str:
    """A share in [0, 1] as '31 %', with a decimal below 10 % and no false 0 or 100; `is_short` writes < and >."""
    over, under = ("> ", "< ") if is_short else ("over ", "under ")
    if share >= 0.9995:
        number = "100"
    elif share >= 0.995:
        number = f"{over}99"
    elif share >= 0.0995:
        number = f"{share * 100:.0f}"
    else:
        number = f"{share * 100:.1f}" if share >= 0.001 else f"{under}0.1"
    return f"{number}{_NO_BREAK_SPACE}%"


def probability(logprob: float) -> float:
    """exp of a natural-log probability, in [0, 1]; 0 for minus infinity or a number that is none."""
    return 0.0 if math.isnan(logprob) else min(1.0, math.exp(min(0.0, logprob)))


def plural(count: int, noun: str) -> str:
    """'1 token', '2 tokens', '1,024 tokens'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def is_web_link(url: str) -> bool:
    """Whether a link may be clicked: absolute http or https, nothing else."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return False
    return parts.scheme.lower() in ("http", "https") and bool(parts.netloc)


def markdown_to_html(text: str) -> str:
    """Markdown as HTML: raw HTML shown as text, pictures as their description and address, links to the web only."""
    # The characters below occur in text and attribute values only, so that replacing them in the whole is safe.
    return _parser().render(_LONE_SURROGATE.sub("\ufffd", text)).translate(_TEMPLATE_CHARACTERS)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.validateLink = lambda url: True  # decided when drawing, so that a refused address is still shown
    parser.add_render_rule("image", _image_as_text)
    parser.add_render_rule("link_open", _open_link)
    parser.add_render_rule("link_close", _close_link)
    return parser


def _image_as_text(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    description = token.content or "picture"
    return f'<span class="uq-picture">{encode(description)} ({encode(str(token.attrGet("src") or ""))})</span>'


def _open_link(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    url = str(tokens[index].attrGet("href") or "")
    if not is_web_link(url):
        return f'<span class="uq-picture">{encode(url)} '
    return f'<a href="{encode(url)}" title="{encode(url)}" target="_blank" rel="noopener noreferrer nofollow">'


def _close_link(self: Any, tokens: Sequence[Any], index: int, options: Any, env: Any) -> str:
    depth = 0
    for token in reversed(tokens[:index]):
        depth += {"link_close": 1, "link_open": -1}.get(token.type, 0)
        if depth < 0:
            return "</a>" if is_web_link(str(token.attrGet("href") or "")) else "</span>"
    return ""


def duration(seconds: float) -> str:
    """A length of time in the largest unit that keeps two figures: 80 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
