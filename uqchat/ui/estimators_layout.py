"""The components of the estimators tab. Knows no handler."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr


@dataclass(frozen=True)
class EstimatorPanel:
    """What stands in the estimators tab."""

    offered: gr.HTML
    name: gr.Textbox
    add: gr.Button
    refresh: gr.Button
    refit: gr.Button
    catalogue: gr.HTML


def build_estimator_panel(bind: str, can_change: bool) -> EstimatorPanel:
    """The list, a field for another one, the catalogue. `bind` is the script that reports presses inside the lists."""
    offered = gr.HTML("", elem_id="uq-offered", js_on_load=bind)
    with gr.Row(elem_id="uq-refit-row"):
        refit = gr.Button("Refit with marks", size="sm", min_width=0, interactive=False, elem_id="uq-refit")
        refresh = gr.Button("Look again", size="sm", min_width=0, elem_id="uq-look-again")
    name = gr.Textbox(
        label="Add a trained estimator",
        info="A folder, or a Hub id such as organisation/name.",
        visible=can_change,
        elem_id="uq-head-name",
    )
    add = gr.Button("Load", size="sm", variant="primary", visible=can_change, elem_id="uq-head-load")
    return EstimatorPanel(offered, name, add, refresh, refit, gr.HTML("", elem_id="uq-catalogue", js_on_load=bind))
