"""The figures of `metrics_report` as Markdown tables. Knows only their layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "aurc": "AURC (lower is better)",
    "prr": "PRR",
    "prr_50": "PRR at a rejection of up to one half",
    "brier": "Brier score (lower is better)",
    "brier_skill": "Brier skill score",
    "ece": "ECE (lower is better)",
    "ece_adaptive": "ECE, adaptive bins (lower is better)",
}


def markdown(report: Mapping[str, Any], domains: Mapping[str, Sequence[str]]) -> str:
    """Per prompt style and metric one table of values and, where there is a baseline, one of gains.

    Args:
        report: what `metrics_report.evaluate` gives. domains: their means stand in the last columns.
    """
    blocks = []
    for style, found in report.items():
        blocks.append(f"## Prompt style `{style}`\n\n{_sets(found['sets'])}")
        places = [*found["sets"], *(place for domain in domains for place in (domain, f"{domain}, pooled"))]
        for metric, estimators in found.items():
            if metric != "sets" and estimators:
                blocks.append(f"### {TITLES.get(metric, metric)}\n\n{_table(estimators, places, _value)}")
                if any(cell and "gain" in cell for cells in estimators.values() for cell in cells.values()):
                    blocks.append(f"Gain over the best baseline:\n\n{_table(estimators, places, _gain)}")
    blocks.append(
        "Brackets: 95 % bootstrap intervals over questions; gains are paired. Domains: mean over their sets. "
        "Chance, at an ECE: what the same probabilities would get on average, were they all true."
    )
    return "\n\n".join(blocks) + "\n"


def _sets(sets: Mapping[str, Any]) -> str:
    rows = [["set", "answers", "wrong"]]
    rows += [[name, str(one["rows"]), f"{one['error_share']:.0%}"] for name, one in sets.items()]
    return _lines(rows)


def _table(estimators: Mapping[str, Any], places: Sequence[str], draw: Any) -> str:
    shown = [place for place in places if any(place in cells for cells in estimators.values())]
    rows = [["estimator", *shown]]
    rows += [[f"`{name}`", *(draw(cells.get(place)) for place in shown)] for name, cells in estimators.items()]
    return _lines(rows)


def _value(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    floor = f"; chance {cell['floor']:.3f}" if "floor" in cell else ""
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]{floor}"


def _gain(cell: Mapping[str, Any] | None) -> str:
    if cell is None or "gain" not in cell:
        return "–"
    gain = cell["gain"]
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] over {cell['over']}"


def _lines(rows: Sequence[Sequence[str]]) -> str:
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in ruled)
