"""The playground's curves as files. Knows no component."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import plotly.graph_objects as go

from uqchat.selective import risk_coverage
from uqchat.ui.playground_data import Curve, Wish, band

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5b636d", "#8C564B")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")


def curves_csv(curves: Sequence[Curve]) -> str:
    """One row per distinct risk: run, estimator, threshold, coverage, selective_risk, accuracy."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run", "estimator", "threshold", "coverage", "selective_risk", "accuracy"])
    for curve in curves:
        found = risk_coverage(curve.report.risk, curve.report.is_error)
        for threshold, coverage, risk in zip(found.thresholds, found.coverage, found.selective_risk, strict=True):
            writer.writerow([curve.run.name, curve.estimator, repr(float(threshold)), coverage, risk, 1 - risk])
    return out.getvalue()


def curves_html(curves: Sequence[Curve], wish: Wish) -> str:
    """A page that needs no network: the accuracy-coverage curves with their 90 % bands."""
    return curves_figure(curves, wish).to_html(include_plotlyjs=True, full_html=True)


def curves_figure(curves: Sequence[Curve], wish: Wish | None = None) -> go.Figure:
    """Accuracy of the answered by share of questions answered."""
    figure = go.Figure()
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        edges = band(curve.report)
        if edges["coverage"]:
            figure.add_trace(
                go.Scatter(
                    x=[*edges["coverage"], *edges["coverage"][::-1]],
                    y=[*edges["high"], *edges["low"][::-1]],
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.15,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        found = risk_coverage(curve.report.risk, curve.report.is_error)
        figure.add_trace(
            go.Scatter(
                x=found.coverage,
                y=1 - found.selective_risk,
                name=curve.key,
                line={"color": colour, "dash": _DASHES[number % len(_DASHES)]},
                customdata=found.thresholds,
                hovertemplate="answered %{x:.1%}, right %{y:.1%}<br>threshold %{customdata:.3f}<extra></extra>",
            )
        )
    if wish is not None:
        figure.add_hline(y=1 - wish.max_error, line_dash="dot", line_color="#5b636d")
    figure.update_layout(
        template="plotly_white",
        xaxis={"title": "answered, share of questions", "range": [0, 1.01], "tickformat": ".0%"},
        yaxis={"title": "right, share of answered", "range": [0, 1.01], "tickformat": ".0%"},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure
