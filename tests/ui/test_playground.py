"""The playground's handlers over a scripted host: what is uploaded, chosen and applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from tests.doubles import ScriptedHost
from tests.ui.conftest import FakeRequest, Tab, event, value_of
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
    drawn = sent(page, page.uploads.on_upload(request, str(csv_of(tmp_path / "mine.csv"))))
    assert [curve["key"] for curve in drawn["curves"]] == ["mine: own"]
    tables = play.on_settle(request, event("settle", {"curve": "mine: own", "rank": 5}))
    html = tables[page.widgets.playground.table]
    assert "Answered <span>5;" in html
    row = int(html.split('data-row="')[1].split('"')[0])
    assert f">q{row}<" in play.on_row(request, event("open", {"row": row}))


def test_columns_of_other_names_are_asked_about_and_then_used(page: Page, tmp_path: Path) -> None:
    request, parts = FakeRequest(), page.widgets.playground
    asked = page.uploads.on_upload(request, str(csv_of(tmp_path / "other.csv", "prompt,output,wrong,uncertainty")))
    assert asked[parts.notes] == ""
    assert [asked[one].value for one in parts.columns] == ["prompt", "output", "", "wrong", "uncertainty"]
    assert "<td>q0</td>" in asked[parts.preview]
    last = used(page, request, "prompt", "output", "", "wrong", "uncertainty")
    assert sent(page, last)["curves"][0]["key"] == "other: own"


def test_records_that_lack_a_column_say_which(page: Page, tmp_path: Path) -> None:
    asked = page.uploads.on_upload(FakeRequest(), str(csv_of(tmp_path / "own.csv", "question,answer,wrong,risk_own")))
    assert "no column is_error" in asked[page.widgets.playground.notes]


def used(page: Page, request: FakeRequest, *columns: str, kind: str = "") -> dict[Any, Any]:
    """What the page is left with when the columns were named and all is done."""
    return list(page.uploads.on_use(request, kind, 200, "page", *columns))[-1]


def test_questions_are_answered_by_the_model_and_drawn(page: Page, tmp_path: Path) -> None:
    """The scripted model always says "Paris is the capital of France."."""
    path = tmp_path / "mine.jsonl"
    rows = [{"q": f"{i}?", "gold": ["Paris"] if i % 2 else ["Lyon"], "category": "x"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request, parts = FakeRequest(), page.widgets.playground
    asked = page.uploads.on_upload(request, str(path))
    assert asked[parts.mapping].visible and [asked[one].value for one in parts.columns][:3] == ["q", "", "gold"]
    updates = used(page, request, "q", "", "gold", "", "")
    curve = sent(page, updates)["curves"][0]
    assert curve["run"] == "mine-open-page" and curve["estimator"] == "entropy"
    assert Path(updates[parts.keep].value["path"]).suffix == ".parquet"
    run = page.playground.board(request).uploads["mine-open-page"]
    assert run.is_error.tolist() == [1, 0] * 20 and run.row(0).answer == "Paris is the capital of France."


def test_ready_answers_are_scored_by_the_model_and_graded(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "ready.csv"
    path.write_text("question,answer,references\nCapital of France?,Paris is it,Paris\nOf Italy?,Paris is it,Rome\n")
    request = FakeRequest()
    page.uploads.on_upload(request, str(path))
    used(page, request, "question", "answer", "references", "", "")
    run = page.playground.board(request).uploads["ready-given-page"]
    assert run.is_error.tolist() == [0, 1] and run.row(1).answer == "Paris is it" and "entropy" in run.estimators


def test_a_running_evaluation_is_cancelled_and_goes_on_later(make_page: Callable[..., Page], tmp_path: Path) -> None:
    page = make_page(ScriptedHost("one two three", hold_after=1), data_dir=tmp_path)
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "references": ["one"]}) + "\n" for i in range(40)))
    request, parts = FakeRequest(), page.widgets.playground
    page.uploads.on_upload(request, str(path))
    columns = ("question", "", "references", "", "")
    steps = page.uploads.on_use(request, "", 200, "page", *columns)
    assert "0 of 40 answers" in next(steps)[parts.progress]
    with pytest.raises(gr.Error, match="running already"):
        used(page, request, *columns)
    page.uploads.on_cancel(request)
    page.chat._services.host.release()
    assert "was cancelled" in list(steps)[-1][parts.progress]
    assert sent(page, used(page, request, *columns))["curves"][0]["run"] == "mine-open-page"


def test_columns_that_cannot_be_used_are_explained(page: Page, tmp_path: Path) -> None:
    request = FakeRequest()
    with pytest.raises(gr.Error, match="Upload a file first"):
        used(page, request, "question", "", "", "", "")
    page.uploads.on_upload(request, str(csv_of(tmp_path / "other.csv", "prompt,output,wrong,uncertainty")))
    for columns, words in (
        (("", "", "", "", ""), "holds the question"),
        (("prompt", "", "", "", "uncertainty"), "grade too"),
        (("prompt", "", "", "", ""), "references in every row"),
        (("prompt", "output", "uncertainty", "output", ""), "is_error must be"),
    ):
        with pytest.raises(gr.Error, match=words):
            used(page, request, *columns)


@pytest.mark.parametrize("name", ["/etc", "../x", "assets/records", "a/b/c", ""])
def test_the_field_for_the_hub_reads_no_folder_of_the_server(page: Page, name: str) -> None:
    with pytest.raises(gr.Error, match="data set"):
        page.uploads.on_source(FakeRequest(), name)


def test_an_exported_policy_is_imported_as_the_next_version(page: Page, tmp_path: Path) -> None:
    tab = Tab(page)
    tab.open()
    page.uploads.on_upload(tab.request, str(csv_of(tmp_path / "mine.csv")))
    costs = {"wrong": 3, "refusal": 0.5, "withheld": 0, "hand_over": 0.4}
    place = json.dumps({"curve": "mine: own", "rank": 7, "costs": costs})
    updates = page.playground.on_export(tab.request, "Policy JSON", place, "careful", "mark", 4, "")
    file = value_of(updates[page.widgets.playground.download])["path"]
    assert json.loads(Path(file).read_text())["costs"] == costs
    for version in (1, 2):
        said = page.policies.on_import(tab.request, tab.kept, file)
        assert f"careful@{version} is kept" in said[page.widgets.playground.said]
    assert ("careful, version 2", "careful@2") in said[page.widgets.policy.chosen].choices
    assert tab.session.policy == ""
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(gr.Error, match="no usable policy"):
        page.policies.on_import(tab.request, tab.kept, str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    "rows", [["a,b,true,0.5"], ["a,b,true,0.5", "c,d,true,0.6"], ["a,b,false,0.5", "c,d,false,0.6"]]
)
def test_one_row_all_wrong_and_all_right_are_drawn_with_a_word(page: Page, tmp_path: Path, rows: list[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("question,answer,is_error,risk_own\n" + "\n".join(rows) + "\n")
    updates = page.uploads.on_upload(FakeRequest(), str(path))
    assert sent(page, updates)["curves"][0]["count"] == len(rows)
    assert "graded answer" in updates[page.widgets.playground.notes]


def test_a_broken_file_is_explained(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(gr.Error, match="cannot be read"):
        page.uploads.on_upload(FakeRequest(), str(path))


def test_a_forged_place_is_refused(page: Page, tmp_path: Path) -> None:
    request, play = FakeRequest(), page.playground
    page.uploads.on_upload(request, str(csv_of(tmp_path / "mine.csv")))
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
    page.uploads.on_upload(tab.request, str(csv_of(tmp_path / "mine.csv")))
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
