"""Claims about the inspector and the legend."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tests.doubles import scored_token, scored_tokens
from tests.drawing import alternatives, sequence
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.render import (
    RiskView,
    inspector_html,
    legend_html,
    token_sentence,
)
from uqchat.types import Alternative, Risk

VIEW = RiskView()


@pytest.mark.parametrize(
    ("token_id", "others", "sentence"),
    [
        (1, (("Osh", 0.69), (" Bishkek", 0.31)), "The model gave “Osh” 69 % and nearly wrote “Bishkek”, 31 %."),
        (1, (("Osh", 0.97), ("Bishkek", 0.02)), "The model gave “Osh” 97 %; next came “Bishkek”, 2.0 %."),
        (2, (("Osh", 0.69), ("Bishkek", 0.31)), "The likeliest was “Osh”, 69 %; the model gave “Bishkek” 31 %."),
        (
            1,
            (("\n", 0.9), ("", 0.1)),
            "The model gave a line break 90 % and nearly wrote a special or partial token, 10 %.",
        ),
    ],
)
def test_one_sentence_says_what_nearly_happened(
    token_id: int, others: tuple[tuple[str, float], ...], sentence: str
) -> None:
    found = alternatives(*others)
    chosen = found[token_id - 1]
    token = scored_token(0, chosen.text, token_id=token_id, logprob=chosen.logprob, alternatives=found)
    assert token_sentence(token).replace("\u00a0", " ") == sentence


def test_the_inspector_offers_every_alternative_but_the_chosen_one() -> None:
    token = scored_token(3, "Osh", token_id=1, alternatives=alternatives(("Osh", 0.6), ("<i>", 0.3), ("a", 0.1)))
    markup = inspector_html(token, [token], VIEW, "m")
    assert re.findall(r'data-action="continue" data-message="m" data-index="3" data-token-id="(\d)"', markup) == [
        "2",
        "3",
    ]
    assert "&lt;i&gt;" in markup
    assert 'data-action="continue"' not in inspector_html(token, [token], VIEW, "m", can_continue=False)


def test_positions_are_counted_without_the_end_token() -> None:
    tokens = [scored_token(0, "Osh"), scored_token(1, "."), scored_token(2, "", is_end=True)]
    assert "2 of 2" in inspector_html(tokens[1], tokens, VIEW, "m")
    assert "the end<" in inspector_html(tokens[2], tokens, VIEW, "m")


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
    assert markup.count('class="uq-view-name"') == len(ESTIMATOR_NAMES)
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
    calibrated = legend_html("entropy", VIEW, "questions & answers")
    assert "Calibrated for questions &amp; answers. Risk = probability of error within that scope." in calibrated
    assert "ot calibrated" not in calibrated


def test_the_inspector_says_what_each_voter_gives_the_token() -> None:
    first, *rest = scored_tokens("Osh is")
    first = replace(first, risks={"vote": Risk(0.4, 0.44, voters=(0.91, 0.05, 0.5))})
    shown = inspector_html(first, (first, *rest), RiskView("vote"), "m")
    assert re.search(r"voters give it 91\W?%, 5\.0\W?%, 50\W?%", shown)
