"""The playground in a real browser: a threshold is dragged, applied, and obeyed by the chat, after a reload too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.test_chat_page import SLOW, ask
from tests.doubles import ScriptedHost, offer, scored_token
from uqchat.config import AppConfig
from uqchat.records import Record
from uqchat.records_files import RecordsWriter
from uqchat.types import Risk
from uqchat.ui.serve import close, launch
from uqchat.ui.services import open_services

pytestmark = pytest.mark.browser

SURE = [scored_token(0, "Paris", top=0.99)]
_TOKEN = scored_token(0, "Gloober", top=0.3)
UNSURE = [replace(_TOKEN, risks={**_TOKEN.risks, "entropy": Risk(0.97, 3.5)})]


def write_records(path: Path, count: int = 300) -> None:
    """Answers whose risk is their probability of being wrong."""
    generator = np.random.default_rng(0)
    writer = RecordsWriter(path, {})
    writer.add(
        [
            Record(
                f"q{i}",
                f"Question {i}?",
                f"Answer {i}",
                bool(generator.random() < risk),
                {"entropy": Risk(float(risk), 1.0), "margin": Risk(float(generator.random()), 1.0)},
                set="facts",
                category="capital",
                tokens=tuple(SURE),
                model="scripted",
            )
            for i, risk in enumerate(generator.random(count))
        ]
    )
    writer.finish()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a page with two runs of records is served."""
    folder = tmp_path_factory.mktemp("page")
    write_records(folder / "records" / "own_run.parquet")
    host = ScriptedHost(UNSURE, SURE)
    host.set_state("ready", "The model is ready.", offers=(offer("entropy"),))
    services = open_services(AppConfig(data_dir=folder, port=0), host)
    page = launch(services, prevent_thread_lock=True, quiet=True)
    yield page.blocks.local_url
    page.blocks.close()
    close(services)


@pytest.fixture
def playground(page: Page, address: str) -> Page:
    """The open playground with curves; nothing goes wrong in it."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{error} {error.stack}"))
    page.goto(address)
    expect(page.locator("#uq-history .uq-message").first).to_be_visible(timeout=SLOW)
    page.get_by_role("tab", name="Playground").click()
    expect(page.locator(".uq-pg-curve svg")).to_be_visible(timeout=SLOW)
    expect(page.locator("#uq-pg-table tbody tr").first).to_be_visible(timeout=SLOW)
    yield page
    # A request that a reload cuts off is no fault of the page.
    assert [text for text in wrong if not re.search("AbortError|errored out", text)] == []


def number(page: Page, name: str) -> float:
    """A figure of the board."""
    return float(re.match(r"[\d.,]+", page.locator(f"[data-n={name}]").inner_text()).group().replace(",", ""))


def open_own_run(page: Page) -> None:
    """The test's own records alone, whatever ships."""
    runs = page.locator("#uq-pg-runs")
    if "own_run" in runs.inner_text():
        return
    runs.locator("input").click()
    page.get_by_role("option", name="own_run").click()
    expect(page.locator(".uq-pg-key")).to_contain_text("own_run: entropy", timeout=SLOW)
    page.locator(".uq-pg-keyitem", has_text="own_run: entropy").click()


def test_a_threshold_is_dragged_applied_and_obeyed_after_a_reload(playground: Page) -> None:
    page = playground
    open_own_run(page)
    answered = number(page, "answered")
    box = page.locator(".uq-pg-curve svg").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.3, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.62, middle, steps=4)
    expect(page.locator("[data-n=answered]")).not_to_contain_text(f"{answered:.0f} (")
    page.mouse.up()
    half = number(page, "answered")
    page.locator(".uq-pg-slider").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-n=answered]")).to_contain_text(f"{half + 1:.0f} (")
    total = number(page, "answered") + number(page, "declined")
    assert number(page, "stopped") + number(page, "withheld") == total - number(page, "answered")
    expect(page.locator("#uq-pg-table")).to_contain_text(f"Answered {half + 1:.0f};", timeout=SLOW)
    page.locator("#uq-pg-table .uq-pg-open").first.click()
    expect(page.locator("#uq-pg-opened .uq-t")).to_have_text("Paris", timeout=SLOW)
    page.locator("#uq-pg-name input, #uq-pg-name textarea").fill("careful")
    page.locator("#uq-pg-apply").click()
    expect(page.locator("#uq-pg-said")).to_contain_text("obeys careful@1", timeout=SLOW)

    page.get_by_role("tab", name="Chat").click()
    ask(page, "What is a gloober?")
    declined = page.locator("#uq-history .uq-declined")
    expect(declined).to_contain_text("I do not know this well enough", timeout=SLOW)
    expect(page.get_by_text("Gloober", exact=True)).to_be_hidden()
    declined.get_by_text("Show it anyway").click()
    expect(page.get_by_text("Gloober", exact=True)).to_be_visible()
    ask(page, "What is the capital of France?")
    expect(page.locator("#uq-history .uq-policy").last).to_contain_text("careful, version 1: passed", timeout=SLOW)
    expect(page.locator("#uq-history .uq-declined")).to_have_count(1)

    page.reload()
    expect(page.locator("#uq-history .uq-declined")).to_be_visible(timeout=SLOW)
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#uq-policy input")).to_have_value("careful, version 1", timeout=SLOW)


def test_curves_and_policies_are_saved_as_files(playground: Page, tmp_path: Path) -> None:
    """The PNG is drawn by the browser, the HTML page holds its own script, the policy can be brought back."""
    page, saved = playground, {}
    buttons = {"csv": "#uq-pg-save-csv", "html": "#uq-pg-save-html", "json": "#uq-pg-save-json", "png": "[data-go=png]"}
    for kind, selector in buttons.items():
        with page.expect_download(timeout=SLOW) as download:
            page.locator(selector).click()
        saved[kind] = tmp_path / f"saved.{kind}"
        download.value.save_as(saved[kind])
    assert saved["csv"].read_text().startswith("run,estimator,threshold,coverage,selective_risk,accuracy")
    header = saved["png"].read_bytes()[:24]
    width, height = (int.from_bytes(header[i : i + 4]) for i in (16, 20))
    assert header.startswith(b"\x89PNG") and width > 800 and height > 600
    with page.expect_file_chooser() as chooser:
        page.locator("#uq-pg-bring").click()
    chooser.value.set_files(saved["json"])
    expect(page.locator("#uq-pg-said")).to_contain_text("is kept", timeout=SLOW)
    alone = page.context.browser.new_context(offline=True)
    exported = alone.new_page()
    exported.goto(saved["html"].as_uri())
    expect(exported.locator(".scatterlayer .trace").first).to_be_visible(timeout=SLOW)
    alone.close()


def test_own_questions_are_answered_by_the_model_and_drawn(playground: Page, tmp_path: Path) -> None:
    """The scripted model knows nothing of gold, so every answer is wrong and no threshold can tell."""
    page, file = playground, tmp_path / "mine.csv"
    file.write_text("prompt,gold\n" + "".join(f"Question {i}?,gold {i}\n" for i in range(30)))
    page.get_by_text("Own questions, answers or records").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#uq-pg-upload").click()
    chooser.value.set_files(file)
    expect(page.locator("#uq-pg-mapping")).to_contain_text("Question 0?", timeout=SLOW)
    page.locator("#uq-pg-use").click()
    expect(page.locator("#uq-pg-runs")).to_contain_text("mine-open-page", timeout=SLOW)
    expect(page.locator("#uq-pg-notes")).to_contain_text("Every graded answer is wrong", timeout=SLOW)
    expect(page.locator("#uq-pg-keep")).to_be_visible()


def test_costs_move_the_cheapest_threshold(playground: Page) -> None:
    page = playground
    open_own_run(page)
    page.locator(".uq-pg-costs summary").click()
    page.locator("[data-cost=refusal]").fill("0")
    page.locator("[data-go=cheapest]").click()
    expect(page.locator("[data-n=answered]")).to_contain_text(re.compile(r"^[0-9] \("))
    page.locator("[data-cost=hand_over]").fill("5")
    page.locator("[data-go=cheapest]").click()
    expect(page.locator("[data-n=declined]")).to_have_text("0")
    expect(page.locator(".uq-pg-scores tr", has_text="own_run: entropy")).to_contain_text("100 % answered")


def test_the_playground_is_accessible_and_fits_a_phone(playground: Page) -> None:
    page = playground
    found = Axe().run(page, context="#uq-pg-board, #uq-pg-table, #uq-pg-slices, #uq-pg-notes")
    assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".uq-pg-curve svg")).to_be_visible()
    page.wait_for_function("document.querySelector('.uq-pg-curve svg').getBoundingClientRect().right <= 390")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
