"""Claims about escaping, numbers and Markdown: nothing is lost, nothing can run."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.drawing import ANY_TEXT, NASTY
from uqchat.render import (
    encode,
    markdown_to_html,
    percent,
)


@given(ANY_TEXT | NASTY)
def test_encoded_text_holds_no_markup_and_comes_back(text: str) -> None:
    encoded = encode(text)
    assert not set(encoded) & set("<>\"'`${}\\\r")
    assert html.unescape(encoded) == text


def test_a_lone_surrogate_is_replaced_because_nothing_can_carry_it() -> None:
    assert encode("a\ud800b") == "a\ufffdb"
    assert "\ud800" not in markdown_to_html("a\ud800b")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.999, "over 99 %"),
        (0.994, "99 %"),
        (0.31, "31 %"),
        (0.0996, "10 %"),
        (0.0994, "9.9 %"),
        (0.0, "under 0.1 %"),
    ],
)
def test_percentages_are_never_falsely_certain(share: float, text: str) -> None:
    assert percent(share).replace("\u00a0", " ") == text


def test_markdown_shows_pictures_as_text_and_links_to_the_web_only() -> None:
    markup = markdown_to_html(
        "![cat](http://evil/x.png) [ok](https://a.org) [no](javascript:alert(1)) <img src=x> **b**"
    )
    assert "<img" not in markup and "javascript" not in re.sub(r">[^<]*<", "><", markup)
    assert "cat (http://evil/x.png)" in markup
    assert re.findall(r'<a href="([^"]*)"[^>]*rel="([^"]*)"', markup) == [
        ("https://a.org", "noopener noreferrer nofollow")
    ]
    assert "<strong>b</strong>" in markup


def test_markdown_leaves_nothing_for_a_template_engine() -> None:
    assert not set(markdown_to_html("`${alert(1)}` {{x}} \\ `")) & set("${}`\\")


@given(st.text("[]()<>!*_`~|#-= \n\tab&\"'\\$:/.{}1", max_size=80))
def test_markdown_makes_only_harmless_tags(text: str) -> None:
    allowed = "p|em|strong|code|pre|h[1-6]|ul|ol|li|blockquote|hr|br|a|span|table|thead|tbody|tr|th|td|s"
    for tag, attributes in re.findall(r"<(/?[^\s>]*)([^>]*)>", markdown_to_html(text)):
        assert re.fullmatch(f"/?(?:{allowed})/?", tag)
        assert not re.search(r"\son\w+=", attributes)
