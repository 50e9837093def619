"""What the toolbar, the status line and the model tab promise, without a browser."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr
import pytest

from tests.doubles import ESTIMATOR_NAMES, ScriptedHost, offer
from tests.test_conversation_rescore import read_by_vote
from tests.ui.conftest import FakeRequest, Tab
from uqchat.errors import ModelError
from uqchat.ui.offers import picker
from uqchat.ui.page import Page

NAMES = ["entropy", "max_prob", "margin"]


def test_switching_the_estimator_recolours_without_asking_the_model(tab: Tab) -> None:
    tab.ask("Capital of France?")
    before = tab.html(tab.finish(), "history")
    host = tab.page.chat._services.host
    updates = tab.page.views.on_view(tab.request, tab.kept, "margin", "absolute", "risk", NAMES)
    assert tab.html(updates, "history") != before and "Margin" in tab.html(updates, "legend")
    relative = tab.page.views.on_view(tab.request, tab.kept, "margin", "relative", "risk", NAMES)
    assert "within" in tab.html(relative, "legend")
    markdown = tab.page.views.on_view(tab.request, tab.kept, "margin", "relative", "markdown", NAMES)
    assert "uq-md" in tab.html(markdown, "history")
    assert len(host.requests) == 1


def test_an_estimator_that_the_model_cannot_serve_says_why(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", said.append)
    reason = "Margin cannot be used here: this model gives no top-2 log-probabilities."
    tab.page.views._services.host.set_state("ready", offers=(offer("entropy"), offer("margin", refusal=reason)))
    tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "risk", NAMES)
    assert said == []
    tab.page.views.on_view(tab.request, tab.kept, "margin", "absolute", "risk", NAMES)
    assert said == [reason]


def test_no_number_is_called_a_probability_of_error_but_one_of_a_calibrated_answer(tab: Tab) -> None:
    example = tab.html(tab.open(), "legend")
    tab.ask("Capital of France?")
    legend = tab.html(tab.finish(), "legend")
    assert "Not calibrated" in legend and "confidence" not in legend and "probability of error" not in legend
    scope = tab.page.chat._services.examples.messages[-1].tokens[0].risks["entropy"].calibration
    assert (f"Calibrated for {scope}." if scope else "Not calibrated") in example


def test_an_unknown_estimator_is_refused(tab: Tab) -> None:
    with pytest.raises(gr.Error, match="Unknown estimator"):
        tab.page.views.on_view(tab.request, tab.kept, "magic", "absolute", "risk", [])


def test_the_newest_answer_has_a_chart_and_a_line_for_every_listed_estimator(tab: Tab) -> None:
    tab.ask("Capital of France?")
    updates = tab.finish()
    assert tab.html(updates, "chart").value is not None
    assert tab.html(updates, "overview").count("<dt>") == len(ESTIMATOR_NAMES)
    updates = tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "risk", ["margin"])
    assert tab.html(updates, "overview").count("<dt>") == 2


def test_the_clock_tells_everybody_about_a_switch_once(make_page: Callable[..., Page]) -> None:
    host = ScriptedHost()
    page = make_page(host)
    host.set_state("switching", "Fetching <b>.", done=1, total=4)
    for tab in ("tab-1", "tab-2"):
        html = page.views.on_clock(FakeRequest(tab))[page.widgets.status]
        assert "Fetching &lt;b&gt;." in html and 'max="4" value="1"' in html
        assert page.views.on_clock(FakeRequest(tab)) == gr.skip()


def test_loading_a_model_forgets_the_token(make_page: Callable[..., Page]) -> None:
    host = ScriptedHost()
    page = make_page(host)
    updates = page.models.on_load_model(FakeRequest(), " some/model ", "", "", "hf_secret")
    assert host.switches == ["some/model"] and updates[page.widgets.panel.token] == ""


def test_a_refused_switch_is_explained(make_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    host = ScriptedHost()

    def refuse(name: str, **options: object) -> None:
        raise ModelError(f"No model named {name!r} <x>.")

    monkeypatch.setattr(host, "switch", refuse)
    with pytest.raises(gr.Error, match="&lt;x&gt;"):
        make_page(host).models.on_load_model(FakeRequest(), "nope", "", "", "")


def test_the_model_tab_is_hidden_where_switching_is_off(make_page: Callable[..., Page]) -> None:
    def is_shown(page: Page) -> bool:
        return next(b for b in page.blocks.blocks.values() if getattr(b, "id", "") == "model").visible

    assert is_shown(make_page(allow_model_switch=True))
    assert not is_shown(make_page(allow_model_switch=False))


def test_choosing_a_costly_estimator_lets_it_read_the_newest_answer(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    host = tab.page.views._services.host
    host.set_state("ready", offers=(offer("entropy"), offer("vote", is_costly=True, cost="+3 rows")))
    assert dict(map(reversed, picker(tab.session, host.status().offers)))["vote"].endswith(", +3 rows")
    tab.ask("Capital of France?")
    tab.finish()
    calls = read_by_vote(host)
    updates = tab.page.views.on_view(tab.request, tab.kept, "vote", "absolute", "risk", NAMES)
    assert updates[tab.page.widgets.ticket] == tab.session.ticket and "reads this answer now" in said[-1]
    tab.finish()
    answer = tab.stored()[-1]
    assert calls[0][1] == tuple(token.token_id for token in answer.tokens)
    assert all(token.risks["vote"].voters for token in answer.tokens) and len(host.requests) == 1
    tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "risk", NAMES)
    tab.page.views.on_view(tab.request, tab.kept, "vote", "absolute", "risk", NAMES)
    assert len(calls) == 1 and "reads this answer now" not in said[-1]


def test_a_costly_estimator_chosen_while_an_answer_is_written_reads_it_afterwards_once(tab: Tab) -> None:
    host = tab.page.views._services.host
    tab.ask("Capital of France?")
    host.set_state("ready", offers=(offer("entropy"), offer("vote", is_costly=True)))
    tab.session.look("vote", "absolute", "risk", None)
    calls = read_by_vote(host, ModelError("no room"))
    ticket = tab.session.ticket
    tab.finish()
    assert tab.session.ticket != ticket and len(calls) == 1
    tab.finish()
    tab.finish()
    assert len(calls) == 1, "what failed is not tried again and again"
    assert tab.stored()[-1].scores.failures == {"vote": "no room"}
