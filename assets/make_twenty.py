"""Writes docs/twenty-answers.html and its picture: answers of the shipped records, coloured, ten right and ten wrong.

Which ten is not chosen: the first ten of each in a fixed shuffle of the file. `python assets/make_twenty.py` draws with
the estimator that the page tints by when nobody has chosen; no model runs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from uqchat.records import Record, Records  # noqa: E402  found through the line above
from uqchat.records_files import checked, read_table  # noqa: E402
from uqchat.render import RiskView, answer_line, encode, legend_html, tokens_to_html  # noqa: E402
from uqchat.transfer_html import standalone  # noqa: E402

SOURCE = ROOT / "assets" / "records" / "easy_facts.parquet"
PAGE = ROOT / "docs" / "twenty-answers.html"
PICTURE = ROOT / "assets" / "pictures" / "twenty-answers.png"
TITLE = "Ten right and ten wrong answers"
ESTIMATOR = "combination"
COUNT, SEED = 10, 0


def main() -> None:
    """Choose, draw, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimator", default=ESTIMATOR)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    records = Records(checked(read_table(SOURCE), SOURCE.stem), SOURCE.stem)
    args.page.parent.mkdir(parents=True, exist_ok=True)
    args.page.write_bytes(page_of(chosen(records), RiskView(args.estimator)))
    photograph(args.page, args.picture)
    print(args.page, args.picture)


def chosen(records: Records) -> dict[bool, list[Record]]:
    """By whether they are wrong: the first ten of each in the shuffle."""
    order = list(range(len(records)))
    random.Random(SEED).shuffle(order)
    kinds: dict[bool, list[int]] = {False: [], True: []}
    for number in order:
        if records.is_error[number] == records.is_error[number]:
            kinds[bool(records.is_error[number])].append(number)
    return {is_error: [records.row(number) for number in rows[:COUNT]] for is_error, rows in kinds.items()}


def page_of(records: dict[bool, list[Record]], view: RiskView) -> bytes:
    """The page: right answers, then wrong ones with what would have been right."""
    scope = records[True][0].versions.get("calibrations", {}).get(view.estimator)
    told = (
        f"SmolLM2-135M-Instruct on held-out questions of easy_facts: the first {COUNT} right and the first {COUNT}"
        " wrong answers in a fixed shuffle, drawn by assets/make_twenty.py."
    )
    parts = [f'<p class="uq-note">{encode(told)}</p>', legend_html(view.estimator, view, scope)]
    for is_error, rows in records.items():
        parts.append(f"<h2>{'Wrong' if is_error else 'Right'}</h2>")
        parts += [_entry(record, view) for record in rows]
    return standalone(TITLE, "\n".join(parts))


def _entry(record: Record, view: RiskView) -> str:
    notes = answer_line(record.tokens, view)
    if record.is_error:
        notes += f" · Right would be: {', '.join(record.references[:2])}"
    text = tokens_to_html(record.tokens, view, record.question_id)
    return (
        f'<article class="uq-message uq-answer"><p class="uq-note">{encode(record.question)}</p>{text}'
        f'<p class="uq-line">{encode(notes)}</p></article>'
    )


def photograph(page: Path, picture: Path) -> None:
    """The whole page as a picture."""
    executable = os.environ.get("UQCHAT_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        shown = browser.new_page(viewport={"width": 820, "height": 900})
        shown.goto(page.resolve().as_uri())
        shown.add_style_tag(content="* { content-visibility: visible !important }")  # what is far down is drawn too
        shown.screenshot(path=picture, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
