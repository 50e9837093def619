"""The estimators tab and the picker, without a browser."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from tests.doubles import ESTIMATOR_NAMES, offer
from tests.ui.conftest import Tab, event, value_of
from uqchat.catalogue import known_heads
from uqchat.errors import ModelError
from uqchat.host import HostStatus
from uqchat.token_codec import AnswerScores
from uqchat.types import Risk
from uqchat.ui.choices import Choices, to_keep
from uqchat.ui.estimators_html import estimators_html, heads_html
from uqchat.ui.overview import remark_on, verdict_on

HEAD = offer(
    "shelf/head", label="UQ head (head)", card="---\nbase: x\n---\n# <b>Card</b>", is_added=True, scope="facts"
)
QUERY = offer("query", is_costly=True, level="answer")


def offered(tab: Tab, *more: Any) -> Any:
    """The host now offers these on top; what the clock then sends."""
    host = tab.page.views._services.host
    host.set_state("ready", offers=(*map(offer, ESTIMATOR_NAMES), *more))
    return tab.page.views.on_clock(tab.request, tab.kept)


def test_the_picker_follows_what_the_host_offers(tab: Tab) -> None:
    w = tab.page.widgets
    updates = offered(tab, HEAD, offer("probe", refusal="It has 30 layers, this model 12."))
    assert updates[w.estimator].choices[-2:] == [
        ("UQ head (head)", "shelf/head"),
        ("Probe – not with this model", "probe"),
    ]
    assert "shelf/head" in value_of(updates[w.listed]) and "It has 30 layers" in updates[w.estimators.offered]
    assert tab.page.views.on_clock(tab.request, tab.kept) == gr.skip()


def test_a_choice_that_went_away_falls_back_with_a_notice(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    offered(tab, HEAD)
    tab.page.views.on_view(tab.request, tab.kept, "shelf/head", "absolute", "risk", ["entropy"])
    updates = offered(tab)
    assert tab.session.view.estimator == "entropy" == value_of(updates[tab.page.widgets.estimator])
    assert said == ["head is not there with this model. Answers are tinted by Entropy now."]


def test_a_kept_choice_that_is_not_offered_any_more_falls_back_at_load(tab: Tab, monkeypatch: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr(gr, "Info", said.append)
    kept = to_keep(f"browser:{tab.kept}", Choices(estimator="gone/head", mode="sentence"))
    updates = tab.open(choices=kept)
    assert value_of(updates[tab.page.widgets.estimator]) == "entropy" and "gone" not in tab.html(updates, "legend")
    assert tab.session.view.mode == "sentence" and len(said) == 1


def test_a_costly_estimator_scores_only_the_answers_of_who_shows_it(tab: Tab) -> None:
    offered(tab, QUERY)
    host = tab.page.views._services.host
    tab.ask("Capital of France?")
    tab.finish()
    assert "query" not in host.requests[-1].estimators
    tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "risk", ["entropy", "query"])
    assert tab.session.wanted == ("entropy", "entropy", "query")
    assert host.status().estimators_with(tab.session.wanted)[-1] == "query"


def test_adding_and_removing_go_to_the_host_and_refusals_are_shown(tab: Tab, monkeypatch: Any) -> None:
    called: list[tuple[str, str]] = []
    host, page = tab.page.views._services.host, tab.page
    for name in ("add_estimator", "remove_estimator"):
        monkeypatch.setattr(host, name, lambda text, name=name: called.append((name, text)), raising=False)
    assert page.estimators.on_add(tab.request, tab.kept, "a/b")[page.widgets.estimators.name] == ""
    page.estimators.on_select(tab.request, event("head_add", {"text": "c/d"}), tab.kept)
    page.estimators.on_select(tab.request, event("head_remove", {"text": "a/b"}), tab.kept)
    assert called == [("add_estimator", "a/b"), ("add_estimator", "c/d"), ("remove_estimator", "a/b")]
    with pytest.raises(gr.Error, match="unknown action"):
        page.estimators.on_select(tab.request, event("format_disk", {}), tab.kept)

    def refuse(text: str) -> None:
        raise ModelError("Adding an estimator is turned off <here>.")

    monkeypatch.setattr(host, "add_estimator", refuse)
    with pytest.raises(gr.Error, match="&lt;here&gt;"):
        page.estimators.on_add(tab.request, tab.kept, "a/b")


def test_the_list_shows_cards_scopes_and_reasons_without_running_any_of_it() -> None:
    status = HostStatus("ready", "m", "", offers=(HEAD, offer("probe", refusal="<i>no</i>")), adding_error="No <b>.")
    markup = estimators_html(status, can_change=True)
    assert "&lt;b&gt;Card" in markup and "base: x" not in markup and "within: facts (tokens)" in markup
    assert "&lt;i&gt;no&lt;/i&gt;" in markup and "No &lt;b&gt;." in markup
    assert 'data-action="head_remove" data-text="shelf/head"' in markup
    assert "head_remove" not in estimators_html(status, can_change=False)


def test_the_catalogue_offers_the_heads_of_the_loaded_model_first_and_only_them() -> None:
    markup = heads_html("unsloth/Mistral-7B-Instruct-v0.2", is_ready=True)
    assert markup.index("fits the loaded model") < markup.index("Llama-3.1")
    enabled = [part for part in markup.split("<button")[1:] if "disabled" not in part]
    assert len(enabled) == sum(head.fits("x/Mistral-7B-Instruct-v0.2") for head in known_heads()) == 3
    assert "fits the loaded model" not in heads_html("embedded", is_ready=True)
    assert "fits the loaded model" not in heads_html(None, is_ready=False)


def test_an_answer_outside_the_scope_says_so_for_the_estimator_that_tints_it(tab: Tab) -> None:
    scores = AnswerScores(outside_scope={"rauq": "it is a poem"}, failures={"query": "Query gave no score: too long."})
    assert "was calibrated on: it is a poem." in remark_on(scores, "rauq", {})
    assert "no probabilities" in remark_on(scores, "rauq", {}) and remark_on(scores, "entropy", {}) == ""
    assert remark_on(scores, "query", {}) == "Query gave no score: too long."
    tab.ask("Write a poem.")
    tab.finish()
    answer = tab.stored()[-1]
    tab.page.chat._store.save_answer(
        f"browser:{tab.kept}", answer.id, answer.text, answer.tokens, "done", scores=scores
    )
    updates = tab.page.views.on_view(tab.request, tab.kept, "rauq", "absolute", "risk", [])
    assert 'role="note"' in tab.html(updates, "history")
    updates = tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "risk", [])
    assert 'role="note"' not in tab.html(updates, "history")


def test_claims_are_listed_in_place_of_the_hint(tab: Tab) -> None:
    tab.ask("Capital of France?")
    assert tab.html(tab.finish(), "claims") == ""
    updates = tab.page.views.on_view(tab.request, tab.kept, "entropy", "absolute", "entity", [])
    assert tab.html(updates, "claims").count("data-claim") == 2 and tab.html(updates, "inspector") == ""
    assert 'class="uq-c ' in tab.html(updates, "history")


def test_enough_marks_can_be_fitted_to(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    host, w = tab.page.views._services.host, tab.page.widgets.estimators
    monkeypatch.setattr(
        host, "refit_estimator", lambda n, m: calls.append((n, len(m), sum(x.is_error for x in m))), raising=False
    )
    monkeypatch.setattr("uqchat.ui.estimators_html.MIN_MARKS", 2)
    monkeypatch.setattr("uqchat.ui.screen.MIN_MARKS", 2)
    assert value_of(tab.page.views.on_clock(tab.request, tab.kept)[w.refit]) == "Refit: 0 of 2 marks"
    for action in ("mark_right", "mark_wrong"):
        tab.ask("Capital of France?")
        tab.finish()
        tab.do(action, message=tab.stored()[-1].id)
    updates = tab.page.views.on_clock(tab.request, tab.kept)
    assert (value_of(updates[w.refit]), updates[w.refit].interactive) == ("Refit with 2 marks", True)
    tab.page.estimators.on_refit(tab.request, tab.kept)
    assert calls == [("entropy", 2, 1)]


def test_a_page_that_never_chose_tints_by_what_was_trained_and_calibrated_for_its_tokens(tab: Tab) -> None:
    offered(tab, offer("uq_head"), offer("combination", scope="facts", is_costly=True))
    assert tab.session.view.estimator == "entropy"
    offered(tab, offer("probe", scope="facts"), offer("uq_head", scope="facts"))
    assert tab.session.view.estimator == "uq_head"
    tab.page.views.on_view(tab.request, tab.kept, "margin", "absolute", "risk", [])
    offered(tab, offer("uq_head", scope="other facts"))
    assert tab.session.view.estimator == "margin"


def test_an_answer_says_how_likely_it_is_wrong_where_that_is_known() -> None:
    scores = AnswerScores({"probe": Risk(0.664, 1.2, "short questions"), "rauq": Risk(0.4, 1.5)})
    assert verdict_on(scores, "probe") == "The answer as a whole: 66% likely wrong."
    assert verdict_on(scores, "rauq") == verdict_on(scores, "entropy") == ""
