"""Claims about the strip chart."""

from __future__ import annotations

from tests.doubles import scored_tokens
from uqchat.render import (
    RiskView,
    strip_figure,
)

VIEW = RiskView()


def test_the_strip_has_one_bar_for_each_piece_that_has_a_risk() -> None:
    tokens = [*scored_tokens("hm <b>Paris</b> é", reasoning=1)]
    bar = strip_figure(tokens, VIEW, "a1").data[0]
    assert [custom[0] for custom in bar.customdata] == [1, 2]
    assert "<" not in bar.customdata[0][1] and bar.meta == "a1"
    assert len(strip_figure((), VIEW).data[0].x) == 0
