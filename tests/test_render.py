"""Claims about the HTML that shows risk: nothing of the text is lost or executed, bins and sentences are right."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import scored_token, scored_tokens
from uqchat.render import (
    RiskView,
    answer_line,
    conversation_html,
    encode,
    inspector_html,
    legend_html,
    live_answer_html,
    markdown_to_html,
    percent,
    risk_bins,
    strip_figure,
    token_sentence,
    tokens_to_html,
    welcome_html,
)
from uqchat.types import Alternative, Risk, ScoredToken

CSS = (Path(__file__).parent.parent / "assets" / "uqchat.css").read_text(encoding="utf-8")
VIEW = RiskView()
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NASTY = st.sampled_from(
    [
        "<script>",
        "</div>",
        "&amp;",
        "&#39;",
        "${alert(1)}",
        "{{x}}",
        "`",
        "\\",
        "\r\n",
        "\r",
        "\0",
        "\x80",
        "\u202e",
        "]]>",
        "<!--",
        '"',
        "'",
    ]
)


@dataclass(frozen=True)
class Mark:
    """A person's verdict on a span, or on the whole answer."""

    is_error: bool
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Stored:
    """A message as the store hands it out, as far as drawing needs it."""

    role: str = "assistant"
    text: str = ""
    id: str = "m1"
    status: str = "done"
    finish_reason: str | None = "stop"
    error: str | None = None
    tokens: tuple[ScoredToken, ...] = ()
    model: str = "scripted"
    dropped_messages: int = 0
    version: int = 1
    version_count: int = 1
    labels: tuple[Mark, ...] = field(default=())
    is_example: bool = False


@dataclass(frozen=True)
class Running:
    """An answer under way."""

    tokens: tuple[ScoredToken, ...] = ()
    status: str = "streaming"
    queue_position: int | None = None
    error: str | None = None


def with_risk(index: int, text: str, value: float, start: int = 0, **changes: Any) -> ScoredToken:
    """A token with this risk."""
    return scored_token(index, text, start, risks={"entropy": Risk(value, value)}, **changes)


def sequence(*pairs: tuple[str, float], **changes: Any) -> list[ScoredToken]:
    """Tokens with these texts and risks, one after the other."""
    tokens: list[ScoredToken] = []
    for text, value in pairs:
        start = tokens[-1].span[1] if tokens else 0
        tokens.append(with_risk(len(tokens), text, value, start, **changes))
    return tokens


def bare(markup: str) -> str:
    """Tags stripped, references resolved."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


@given(st.lists(ANY_TEXT | NASTY), st.booleans(), st.sampled_from(["absolute", "relative"]), st.integers(0, 3))
def test_tags_stripped_and_unescaped_give_the_exact_text(
    texts: list[str], is_streaming: bool, scale: str, reasoning: int
) -> None:
    tokens = [scored_token(i, text, is_reasoning=i < reasoning) for i, text in enumerate(texts)]
    markup = tokens_to_html(tokens, RiskView(scale=scale), 'a"b', is_streaming=is_streaming)
    assert bare(markup) == "".join(texts)


@given(ANY_TEXT | NASTY)
def test_encoded_text_holds_no_markup_and_comes_back(text: str) -> None:
    encoded = encode(text)
    assert not set(encoded) & set("<>\"'`${}\\\r")
    assert html.unescape(encoded) == text


def test_a_lone_surrogate_is_replaced_because_nothing_can_carry_it() -> None:
    assert encode("a\ud800b") == "a\ufffdb"
    assert "\ud800" not in markdown_to_html("a\ud800b")


@given(st.lists(st.sampled_from([" Bish", "kek", "\n", "", "<b>"])), st.integers(0, 2))
def test_a_longer_stream_begins_with_the_shorter_one(texts: list[str], reasoning: int) -> None:
    tokens = tuple(scored_token(i, text, is_reasoning=i < reasoning) for i, text in enumerate(texts))
    drawn = [live_answer_html(Running(tokens[:n]), VIEW, "m") for n in range(1, len(tokens) + 1)]
    assert all(after.startswith(before) for before, after in zip(drawn, drawn[1:], strict=False))


def test_bins_are_the_fifths_of_the_value() -> None:
    values = (0.0, 0.199, 0.2, 0.4, 0.6, 0.79, 0.8, 1.0)
    tokens = sequence(*(("x", value) for value in values))
    assert risk_bins(tokens, VIEW) == [0, 0, 1, 2, 3, 3, 4, 4]


def test_relative_bins_are_the_answers_own_fifths() -> None:
    """Ten different values: two in each fifth, whatever the values are."""
    tokens = sequence(*(("x", value / 1000) for value in (9, 1, 2, 3, 4, 5, 6, 7, 8, 0)))
    assert risk_bins(tokens, RiskView(scale="relative")) == [4, 0, 1, 1, 2, 2, 3, 3, 4, 0]


def test_equal_values_are_all_in_the_lowest_relative_bin() -> None:
    assert risk_bins(sequence(("a", 0.9), ("b", 0.9)), RiskView(scale="relative")) == [0, 0]


def test_tokens_of_one_character_are_drawn_once_with_the_largest_risk() -> None:
    tokens = sequence(("", 0.9), ("", 0.1), ("🙂", 0.3))
    assert risk_bins(tokens, VIEW) == [4, 4, 4]
    assert re.findall(r'class="(uq-t[^"]*)" data-i="(\d)"', tokens_to_html(tokens, VIEW, "m")) == [("uq-t uq-b4", "2")]


def test_reasoning_end_and_unfinished_tokens_have_no_bin() -> None:
    tokens = [with_risk(0, "hm", 0.9, is_reasoning=True), with_risk(1, "", 0.9, is_end=True), with_risk(2, "", 0.9)]
    assert risk_bins(tokens, VIEW) == [None, None, None]


def test_a_reasoning_token_without_text_does_not_tint_the_answer() -> None:
    tokens = [with_risk(0, "", 0.9, is_reasoning=True), with_risk(1, "Paris", 0.1)]
    assert risk_bins(tokens, VIEW) == [None, 0]


def test_an_estimator_that_did_not_run_and_a_risk_that_is_no_number_leave_the_text_plain() -> None:
    tokens = sequence(("a", 0.5), ("b", math.nan))
    assert risk_bins(tokens, RiskView(estimator="margin")) == [None, None]
    assert risk_bins(tokens, VIEW) == [2, None]


def test_reasoning_is_folded_and_counted() -> None:
    tokens = scored_tokens("let me think. Paris", reasoning=3)
    markup = tokens_to_html(tokens, VIEW, "m")
    assert 'data-label="Reasoning, 3 tokens, not part of the risk"' in markup
    assert "uq-b" not in markup.partition("</details>")[0]


def test_the_space_before_a_word_is_outside_its_tint() -> None:
    assert ' <span class="uq-t uq-b0" data-i="0" tabindex="0">Paris</span>' in tokens_to_html(
        sequence((" Paris", 0.1)), VIEW, "m"
    )


def test_one_token_of_an_answer_can_be_reached_with_tab() -> None:
    assert tokens_to_html(scored_tokens("one two three"), VIEW, "m").count('tabindex="0"') == 1


def test_a_marked_span_is_shown_on_the_tokens_it_touches() -> None:
    tokens = sequence(("one", 0.1), (" two", 0.1), (" three", 0.1))
    markup = tokens_to_html(tokens, VIEW, "m", [Mark(True, 4, 7), Mark(False)])
    assert re.findall(r'data-i="(\d)"', re.sub(r'<span class="[^"]*b0" [^>]*>', "", markup)) == ["1"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((0.1, 0.1, 0.1, 0.1), "None of 4 tokens stands out."),
        ((0.1, 0.9, 0.1, 0.1), "1 of 4 tokens stands out: “is”."),
        ((0.1, 0.1, 0.7, 0.9), "2 of 4 tokens stand out: “Bishkek”."),
        ((0.9, 0.1, 0.1, 0.6), "2 of 4 tokens stand out: “It”, “kek”."),
    ],
)
def test_the_answer_line_says_what_the_colours_say(values: tuple[float, ...], line: str) -> None:
    texts = ("It", " is", " Bish", "kek")
    tokens = [*sequence(*zip(texts, values, strict=True)), with_risk(4, "", 1.0, is_end=True)]
    assert answer_line(tokens, VIEW) == line


def test_of_many_risky_words_the_line_names_the_riskiest_in_reading_order() -> None:
    pairs = [(f" w{i} ", value) for i in range(8) for value in [0.61 + i / 100]]
    tokens = sequence(*(pair for risky in pairs for pair in (risky, (" ok", 0.0))))
    assert answer_line(tokens, VIEW) == "8 of 16 tokens stand out: “w2”, “w3”, “w4”, “w5”, “w6”, “w7” …"


def test_an_answer_without_tokens_has_no_line() -> None:
    assert answer_line((), VIEW) == ""


def alternatives(*pairs: tuple[str, float]) -> tuple[Alternative, ...]:
    """Candidates with these texts and probabilities; ids from 1."""
    return tuple(Alternative(i, text, math.log(share)) for i, (text, share) in enumerate(pairs, 1))


@pytest.mark.parametrize(
    ("token_id", "others", "sentence"),
    [
        (1, (("Osh", 0.69), (" Bishkek", 0.31)), "The model gave “Osh” 69 % and nearly wrote “Bishkek”, 31 %."),
        (1, (("Osh", 0.97), ("Bishkek", 0.02)), "The model gave “Osh” 97 %; next came “Bishkek”, 2.0 %."),
        (2, (("Osh", 0.69), ("Bishkek", 0.31)), "The likeliest was “Osh”, 69 %; the model gave “Bishkek” 31 %."),
        (1, (("\n", 0.9), ("", 0.1)), "The model gave “⏎” 90 % and nearly wrote a special or partial token, 10 %."),
    ],
)
def test_one_sentence_says_what_nearly_happened(
    token_id: int, others: tuple[tuple[str, float], ...], sentence: str
) -> None:
    found = alternatives(*others)
    chosen = found[token_id - 1]
    token = scored_token(0, chosen.text, token_id=token_id, logprob=chosen.logprob, alternatives=found)
    assert token_sentence(token).replace("\u00a0", " ") == sentence


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


def test_the_inspector_offers_every_alternative_but_the_chosen_one() -> None:
    token = scored_token(3, "Osh", token_id=1, alternatives=alternatives(("Osh", 0.6), ("<i>", 0.3), ("a", 0.1)))
    markup = inspector_html(token, [token], VIEW, "m")
    assert re.findall(r'data-action="continue" data-message="m" data-index="3" data-token-id="(\d)"', markup) == [
        "2",
        "3",
    ]
    assert "&lt;i&gt;" in markup
    assert 'data-action="continue"' not in inspector_html(token, [token], VIEW, "m", can_continue=False)


def test_a_token_outside_the_ten_likeliest_says_so() -> None:
    ten = tuple(Alternative(i, f"w{i}", -1.0 - i) for i in range(10))
    token = scored_token(0, "rare", token_id=99, logprob=-20.0, alternatives=ten)
    assert "beyond the ten likeliest" in inspector_html(token, [token], VIEW, "m")


def test_the_inspector_steps_over_tokens_that_are_not_drawn() -> None:
    tokens = sequence(("a", 0.1), ("", 0.1), ("é", 0.1), ("", 0.1))
    steps = re.findall(r'data-action="token" data-message="m" (\S+)', inspector_html(tokens[2], tokens, VIEW, "m"))
    assert steps == ['data-index="0"', "disabled"]


def test_without_a_token_the_inspector_says_how_to_open_one() -> None:
    assert "Click a word" in inspector_html(None, (), VIEW)


def test_every_estimator_has_its_view_of_the_token() -> None:
    token = scored_token(0, "Osh", top=0.5)
    markup = inspector_html(token, [token], RiskView(estimator="margin"), "m")
    assert markup.count('class="uq-view-name"') == 3
    assert '<li class="uq-shown"><span class="uq-view-name">Margin' in markup


@pytest.mark.parametrize("draw", [inspector_html, None])
def test_no_uncalibrated_number_is_called_a_probability_of_error_or_a_confidence(draw: Any) -> None:
    token = scored_token(0, "Osh", top=0.5)
    markup = draw(token, [token], VIEW, "m") if draw else legend_html("entropy", VIEW)
    assert "ot calibrated" in markup
    assert "confidence" not in markup
    assert "probability of error" not in markup


def test_the_legend_gives_unit_map_and_five_swatches() -> None:
    markup = legend_html("entropy", VIEW)
    assert markup.count("uq-swatch ") == 5
    assert "nats" in markup and "Risk = 1 - exp(-" in markup.replace("−", "-").replace("−", "-")
    assert "within one answer" in legend_html("entropy", RiskView(scale="relative"))
    assert "Calibrated for questions &amp; answers." in legend_html("entropy", VIEW, "questions & answers")


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


def test_the_markdown_view_of_an_answer_folds_reasoning_and_tints_nothing() -> None:
    markup = tokens_to_html(scored_tokens("hm so **Paris**", reasoning=2), RiskView(mode="markdown"), "m")
    assert "<strong>Paris</strong>" in markup and "uq-b" not in markup and "<details" in markup


def test_every_message_has_its_buttons() -> None:
    question = Stored("user", "Why?", "u1")
    answer = Stored(
        "assistant", "So", "a1", tokens=scored_tokens("So"), version=2, version_count=3, labels=(Mark(True),)
    )
    markup = conversation_html([Stored("system", "secret"), question, answer], VIEW)
    found = re.findall(r'data-action="(\w+)" data-message="(\w+)"', markup)
    assert [action for action, message in found if message == "u1"] == ["copy", "edit"]
    assert [action for action, message in found if message == "a1"] == [
        *("versions_prev", "versions_next", "copy", "retry", "mark_right", "mark_wrong")
    ]
    assert "2 / 3" in markup and "secret" not in markup
    assert re.search(r'"mark_wrong"[^>]*aria-pressed="true"', markup)


def test_while_an_answer_is_under_way_nothing_offers_to_start_another() -> None:
    markup = conversation_html([Stored("user", "Why?"), Stored(tokens=scored_tokens("So"))], VIEW, is_busy=True)
    assert all("disabled" in tag for tag in re.findall(r'<button[^>]*data-action="(?:retry|edit)"[^>]*>', markup))


def test_the_example_is_marked_and_can_only_be_copied() -> None:
    markup = conversation_html([Stored(tokens=scored_tokens("So"), is_example=True, finish_reason="length")], VIEW)
    assert "Stored example" in markup
    assert re.findall(r'data-action="(\w+)"', markup) == ["copy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "cancelled"}, "Stopped"),
        ({"finish_reason": "length"}, "Length limit reached"),
        ({"status": "error", "error": "No <memory>"}, "No &lt;memory&gt;"),
        ({"dropped_messages": 4}, "Oldest 4 messages left out: the window is full"),
        ({"labels": (Mark(True, 0, 2),)}, "Marked wrong: <q>So</q>"),
    ],
)
def test_each_state_of_an_answer_is_said_in_words(changes: dict[str, Any], words: str) -> None:
    assert words in conversation_html([Stored(text="So", tokens=scored_tokens("So"), **changes)], VIEW)


def test_continue_goes_on_from_the_last_token() -> None:
    tokens = scored_tokens("one two", has_end=False)
    markup = conversation_html([Stored(tokens=tokens, finish_reason="length")], VIEW)
    assert f'data-action="continue" data-message="m1" data-index="1" data-token-id="{tokens[1].token_id}"' in markup


def test_a_live_answer_says_that_it_is_busy_and_who_is_before_it() -> None:
    assert live_answer_html(None, VIEW, "m") == ""
    assert 'aria-busy="true"' in live_answer_html(Running(), VIEW, "m")
    assert "2 requests ahead" in live_answer_html(Running(status="waiting", queue_position=2), VIEW, "m")
    assert 'aria-busy="false"' in live_answer_html(Running(scored_tokens("So"), "done"), VIEW, "m")
    assert "out of memory" in live_answer_html(Running(status="error", error="out of memory"), VIEW, "m")


def test_the_first_minute_offers_questions_by_group() -> None:
    markup = welcome_html({"Often wrong": ['Who said "<b>"?']})
    assert 'data-action="ask" data-text="Who said &#34;&lt;b&gt;&#34;?"' in markup


def test_the_strip_has_one_bar_for_each_piece_that_has_a_risk() -> None:
    tokens = [*scored_tokens("hm <b>Paris</b> é", reasoning=1)]
    bar = strip_figure(tokens, VIEW).data[0]
    assert [custom[0] for custom in bar.customdata] == [1, 2]
    assert "<" not in bar.customdata[0][1]
    assert len(strip_figure((), VIEW).data[0].x) == 0


def palette(theme: str) -> dict[str, str]:
    """The colours of `:root` or `.dark`."""
    block = re.search(rf"^{re.escape(theme)} \{{(.*?)^\}}", CSS, re.S | re.M).group(1)
    return dict(re.findall(r"--uq-([\w]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root", ".dark"])
def test_text_reads_on_every_tint_and_the_tints_are_ordered_in_grey(theme: str) -> None:
    colours = palette(theme)
    for name in ("b0", "b1", "b2", "b3", "b4", "paper", "wash"):
        assert contrast(colours["ink"], colours[name]) >= 4.5, name
    assert contrast(colours["soft"], colours["paper"]) >= 4.5
    assert contrast(colours["soft"], colours["wash"]) >= 4.5
    tints = [luminance(colours[f"b{i}"]) for i in range(5)]
    assert tints == sorted(tints, reverse=theme == ":root")
    for i in range(1, 5):
        assert contrast(colours[f"m{i}"], colours[f"b{i}"]) >= 2.0, f"underline of bin {i}"


def test_each_bin_has_its_own_underline() -> None:
    styles = re.findall(r"\.uq-b[1-4] \{[^}]*underline (\w+) [\d.]+px", CSS)
    assert styles == ["dotted", "dashed", "solid", "double"]


def test_the_style_sheets_and_scripts_ask_no_other_host() -> None:
    for path in (Path(__file__).parent.parent / "assets").iterdir():
        if path.suffix in (".css", ".js"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|@import|url\((?!\"data:)", text), path.name
