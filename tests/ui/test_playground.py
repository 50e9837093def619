"""The playground's handlers over a scripted host: what is uploaded, chosen and applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from tests.ui.conftest import FakeRequest, Tab, event
from uqchat.ui.page import Page


def csv_of(path: Path, header: str = "question,answer,is_error,risk_own", count: int = 60) -> Path:
    """An own file whose risk is right."""
    generator = np.random.default_rng(0)
    lines = [
        f"q{i},a{i},{bool(generator.random() < risk)},{risk:.3f}" for i, risk in enumerate(generator.random(count))
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture
def page(make_page: Callable[..., Page], tmp_path: Path) -> Page:
    """A page with its own folder of policies."""
    return make_page(policies_dir=tmp_path / "policies", data_dir=tmp_path)


def sent(page: Page, updates: dict[Any, Any]) -> dict[str, Any]:
    """What the browser gets to draw."""
    html = updates[page.widgets.playground.data]
    return json.loads(html.split(">", 1)[1].rsplit("</div>", 1)[0])


def test_the_shipped_records_open_at_once(page: Page) -> None:
    updates = page.playground.on_open(FakeRequest())
    drawn = sent(page, updates)
    assert drawn["curves"] and drawn["chosen"] in [curve["key"] for curve in drawn["curves"]]
    assert page.playground.on_open(FakeRequest()) == gr.skip()  # a second visit keeps what was chosen


def test_own_records_are_drawn_and_their_questions_open(page: Page, tmp_path: Path) -> None:
    request, play = FakeRequest(), page.playground
    drawn = sent(page, play.on_upload(request, str(csv_of(tmp_path / "mine.csv"))))
    assert [curve["key"] for curve in drawn["curves"]] == ["mine: own"]
    tables = play.on_settle(request, event("settle", {"curve": "mine: own", "rank": 5}))
    html = tables[page.widgets.playground.table]
    assert "Answered <span>5;" in html
    row = int(html.split('data-row="')[1].split('"')[0])
    assert f">q{row}<" in play.on_row(request, event("open", {"row": row}))


def test_columns_of_other_names_are_asked_about_and_then_used(page: Page, tmp_path: Path) -> None:
    request, play, parts = FakeRequest(), page.playground, page.widgets.playground
    asked = play.on_upload(request, str(csv_of(tmp_path / "other.csv", "prompt,output,wrong,uncertainty")))
    assert "no column question" in asked[parts.notes]
    assert [asked[one].value for one in parts.columns] == ["prompt", "output", "wrong", "uncertainty"]
    drawn = sent(page, play.on_use(request, "prompt", "output", "wrong", "uncertainty"))
    assert drawn["curves"][0]["key"] == "other: own"


@pytest.mark.parametrize(
    "rows", [["a,b,true,0.5"], ["a,b,true,0.5", "c,d,true,0.6"], ["a,b,false,0.5", "c,d,false,0.6"]]
)
def test_one_row_all_wrong_and_all_right_are_drawn_with_a_word(page: Page, tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("question,answer,is_error,risk_own\n" + "\n".join(rows) + "\n")
    updates = page.playground.on_upload(FakeRequest(), str(path))
    assert sent(page, updates)["curves"][0]["count"] == len(rows)
    assert "graded answer" in updates[page.widgets.playground.notes]


def test_a_broken_file_is_explained(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(gr.Error, match="cannot be read"):
        page.playground.on_upload(FakeRequest(), str(path))


def test_a_forged_place_is_refused(page: Page, tmp_path: Path) -> None:
    request, play = FakeRequest(), page.playground
    play.on_upload(request, str(csv_of(tmp_path / "mine.csv")))
    for data in (
        {"curve": "x", "rank": 1},
        {"curve": "mine: own", "rank": 10_000},
        {"curve": "mine: own", "rank": "1"},
    ):
        with pytest.raises(gr.Error):
            play.on_settle(request, event("settle", data))
    with pytest.raises(gr.Error):
        play.on_row(request, event("open", {"row": -1}))


def test_applying_a_threshold_makes_this_browser_obey_it(page: Page, tmp_path: Path) -> None:
    tab = Tab(page)
    tab.open()
    page.playground.on_upload(tab.request, str(csv_of(tmp_path / "mine.csv")))
    place = json.dumps({"curve": "mine: own", "rank": 7})
    updates = page.policies.on_apply(tab.request, tab.kept, place, "careful", "mark", 4, "")
    choice = page.widgets.policy
    assert updates[choice.kept]["policy"] == tab.session.policy == "careful@1"
    again = page.policies.on_load(tab.request, tab.kept, updates[choice.kept])
    assert again[choice.chosen].value == "careful@1"
    other = page.policies.on_load(tab.request, tab.kept, {**updates[choice.kept], "user": "somebody"})
    assert other[choice.chosen].value == "" and tab.session.policy == ""
    with pytest.raises(gr.Error, match="cannot be kept"):
        page.policies.on_apply(tab.request, tab.kept, place, "<b>", "mark", 4, "")
