"""Tables and notes of the playground as HTML. Pure; escapes everything."""

from __future__ import annotations

from collections.abc import Sequence

from uqchat.evaluation import Progress
from uqchat.records import Record
from uqchat.render import RiskView, encode, percent, tokens_to_html
from uqchat.render_text import duration
from uqchat.ui.playground_data import Curve, Wish
from uqchat.ui.playground_tables import Slice

_CHARS = 160


def notes_html(notes: Sequence[str], is_error: bool = False) -> str:
    """What a reader of the numbers must know; '' without any."""
    kind = " uq-chip-error" if is_error else ""
    return "".join(f'<p class="uq-chip{kind}" role="status">{encode(note)}</p>' for note in notes)


def wish_note(curve: Curve, wish: Wish) -> str | None:
    """What it would take where nothing can be certified; None where something is."""
    if curve.certified(wish) is not None or not len(curve.calibration.risk):
        return None
    more = curve.more_rows(wish)
    need = (
        "no number of answers like these would do" if more is None else f"about {more:,} more graded answers are needed"
    )
    return f"{curve.estimator}: no threshold can be certified for {percent(wish.max_error)} wrong; {need}."


def table_html(curve: Curve, rows: tuple[list[int], list[int]], counts: tuple[int, int]) -> str:
    """The questions on both sides of the threshold, the worst mistakes first."""
    titles = (
        ("Answered", "wrong answers first, the surest on top"),
        ("Declined", "right answers first, the riskiest on top"),
    )
    sides = "".join(
        f'<section><h3>{title} <span>{count:,}; {words}</span></h3><table><thead><tr><th scope="col">Question</th>'
        '<th scope="col">Answer</th><th scope="col">Risk</th><th scope="col">Grade</th></tr></thead>'
        f"<tbody>{''.join(_row(curve, row) for row in side)}</tbody></table></section>"
        for (title, words), side, count in zip(titles, rows, counts, strict=True)
    )
    return f'<div class="uq-pg-sides">{sides}</div>'


def _row(curve: Curve, row: int) -> str:
    table = curve.run.table
    question, answer = (str(table[name][row].as_py() or "") for name in ("question", "answer"))
    is_error, risk = bool(table["is_error"][row].as_py()), float(curve.run.risk(curve.estimator)[row])
    grade = "wrong" if is_error else "right"
    return (
        f'<tr><td><button type="button" class="uq-pg-open" data-row="{row}">{encode(_cut(question))}</button></td>'
        f'<td dir="auto">{encode(_cut(answer))}</td><td>{risk:.2f}</td><td class="uq-pg-is-{grade}">{grade}</td></tr>'
    )


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CHARS else line[:_CHARS] + "…"


def answer_html(record: Record, estimator: str, row: int) -> str:
    """One answer of the file, tinted where its tokens were kept."""
    view = RiskView(estimator)
    has_tint = any(estimator in token.risks for token in record.tokens)
    text = (
        tokens_to_html(record.tokens, view, f"record-{row}")
        if has_tint
        else f'<div class="uq-text" dir="auto">{encode(record.answer)}</div>'
    )
    references = "; ".join(record.references[:6]) or "none"
    grade = {True: "wrong", False: "right", None: "not graded"}[record.is_error]
    risks = ", ".join(f"{encode(name)} {risk.value:.2f}" for name, risk in record.risks.items())
    return (
        f'<article class="uq-pg-answer" aria-label="Opened answer"><h3>{encode(record.question)}</h3>{text}'
        f'<p class="uq-note">Graded {grade}. Reference: {encode(references)}. Risks: {risks}.</p></article>'
    )


def slices_html(found: Sequence[Slice], hidden: int) -> str:
    """Accuracy of the answered by category and data set, and how many slices say too little."""
    rows = "".join(
        f'<tr><th scope="row">{encode(one.name)}</th><td>{one.answered:,} of {one.count:,}</td>'
        f"<td>{percent(one.accuracy)}</td><td>{percent(one.low)} to {percent(one.high)}</td></tr>"
        for one in found
    )
    told = f'<p class="uq-note">{hidden} with too few answered questions to tell are not listed.</p>' if hidden else ""
    if not rows and not told:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Slice", "Answered", "Right", "95 %"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    return f'<details class="uq-pg-slices" open><summary>By category and data set</summary>{table}{told}</details>'


def preview_html(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first rows of an uploaded file."""
    head = "".join(f'<th scope="col">{encode(name)}</th>' for name in names)
    body = "".join("<tr>" + "".join(f"<td>{encode(_cut(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="uq-pg-preview"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<p class="uq-note">Which columns are what? The first rows:</p><div class="uq-pg-scroll">{table}</div>'


def progress_html(progress: Progress) -> str:
    """How far an evaluation is."""
    left = "" if progress.seconds_left is None else f", about {duration(progress.seconds_left)} left"
    words = f"{progress.done:,} of {progress.total:,} answers{left}"
    bar = f'<progress max="{progress.total}" value="{progress.done}" aria-label="{words}"></progress>'
    return f'<p class="uq-chip" role="status">{words} {bar}</p>'
