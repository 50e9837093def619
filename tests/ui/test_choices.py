"""What a browser keeps of the settings, without a browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from tests.doubles import ESTIMATOR_NAMES
from tests.ui.conftest import ALICE, BOB, FakeRequest, Tab, value_of
from uqchat.render import RiskView
from uqchat.ui.choices import Choices, from_kept, to_keep

MINE = Choices("Be brief", 12, 7, 0.5, 0.9, 0.1, 1.1, 40, "END", "margin", "relative", "markdown", ("margin",))


def test_every_choice_comes_back_to_its_user_and_to_nobody_else() -> None:
    kept = to_keep("browser:a", MINE)
    assert from_kept("browser:a", kept) == MINE
    assert from_kept("browser:b", kept) == Choices()


@pytest.mark.parametrize(
    "change",
    [
        {"estimator": 3},
        {"estimator": "x" * 1000},
        {"listed": [3]},
        {"listed": None, "scale": "logarithmic"},
        {"mode": None},
        {"temperature": -1},
        {"top_p": "much"},
        {"system": 3},
        {"seed": 1.5},
        {"unknown": 1},
    ],
)
def test_what_cannot_be_used_gives_the_defaults(change: dict[str, Any]) -> None:
    kept = to_keep("u", MINE)
    assert from_kept("u", {**kept, "values": kept["values"] | change}) == Choices()


@pytest.mark.parametrize("kept", [None, 3, "x", [], {}, {"user": "u"}, {"user": "u", "values": []}])
def test_nothing_kept_gives_the_defaults(kept: object) -> None:
    assert from_kept("u", kept) == Choices()


def test_the_controls_are_in_the_order_of_the_choices(tab: Tab) -> None:
    *shown, listed = [control.value for control in tab.page.widgets.controls()]
    assert ["" if value is None else value for value in shown] == Choices().values[:-1]
    assert not listed and Choices().listed is None


def test_a_reload_brings_back_settings_and_view_and_a_reset_the_defaults(tab: Tab) -> None:
    w, views = tab.page.widgets, tab.page.views
    kept = views.on_choice(tab.request, tab.kept, *MINE.values)[w.choices]
    again = Tab(tab.page, request=FakeRequest("tab-2"))
    updates = again.open(choices=kept)
    assert [value_of(updates[control]) for control in w.controls()] == MINE.values
    assert again.session.view == RiskView("margin", "relative", "markdown") and again.session.listed == ("margin",)
    updates = views.on_reset(again.request, again.kept)
    assert [value_of(updates[control]) for control in w.controls()] == [*Choices().values[:-1], list(ESTIMATOR_NAMES)]
    assert updates[w.choices] == to_keep(f"browser:{ALICE}", Choices()) and again.session.view == RiskView()
    stranger = Tab(tab.page, kept=BOB, request=FakeRequest("tab-3"))
    assert value_of(stranger.open(choices=kept)[w.estimator]) == "entropy"


def test_an_emptied_number_is_kept_as_empty(tab: Tab) -> None:
    emptied = replace(MINE, seed=None, max_new_tokens=None, top_k=None)
    assert from_kept("u", to_keep("u", emptied)) == emptied
    with pytest.raises(gr.Error, match="reload"):
        tab.page.views.on_choice(tab.request, "forged", *MINE.values)
