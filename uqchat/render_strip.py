"""The strip chart: risk over the answer, one bar per visible piece. Builds a Plotly figure; knows no page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uqchat.render_text import encode, visible_whitespace
from uqchat.render_units import RiskView, unit_bins, units
from uqchat.types import ScoredToken

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Okabe-Ito blue to vermilion, chosen to read on white and on near-black alike.
BIN_COLOURS = ("#7fb2d6", "#3f8fc4", "#c9a227", "#e08a1e", "#d55e00")
_INK = "#808590"
_GRID = "rgba(128,133,144,0.25)"


def strip_figure(tokens: Sequence[ScoredToken], view: RiskView, message_id: str = "", height: int = 96) -> Figure:
    """Bars of risk in [0, 1] by position; empty without tokens.

    `customdata` holds each bar's token index and `meta` the message, for whoever opens the token of a bar.
    """
    import plotly.graph_objects as go  # a second to import, and only the page draws it

    pieces = [unit for unit in units(tokens, view.estimator) if unit.risk is not None]
    bins = unit_bins(pieces, view)
    # Plotly reads <b>, <a href> and entities in hover text, so it gets the same encoding as the page.
    names = [encode(visible_whitespace(unit.text)) for unit in pieces]
    figure = go.Figure(
        go.Bar(
            x=list(range(1, len(pieces) + 1)),
            y=[unit.risk for unit in pieces],
            meta=message_id,
            customdata=[[unit.index, name] for unit, name in zip(pieces, names, strict=True)],
            marker={"color": [BIN_COLOURS[number or 0] for number in bins], "line": {"width": 0}},
            hovertemplate="%{customdata[1]}<br>risk %{y:.2f}<extra></extra>",
        )
    )
    axis = {"color": _INK, "gridcolor": _GRID, "zeroline": False, "fixedrange": True, "tickfont": {"size": 10}}
    figure.update_layout(
        height=height,
        margin={"l": 28, "r": 4, "t": 4, "b": 18},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        bargap=0.12,
        showlegend=False,
        dragmode=False,
        hovermode="x",  # a bar of low risk is only a few pixels high
        xaxis={**axis, "showgrid": False, "nticks": 8},
        yaxis={**axis, "range": [0, 1], "tickvals": [0, 0.5, 1]},
    )
    return figure
