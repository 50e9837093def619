"""The settings, model and scoring tabs: what stands in them. Knows no handler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from uqchat.config import GenerationConfig


@dataclass(frozen=True)
class Settings:
    """The controls of one generation, in the order in which handlers take their values."""

    system: gr.Textbox
    max_new_tokens: gr.Number
    seed: gr.Number
    temperature: gr.Slider
    top_p: gr.Slider
    min_p: gr.Slider
    repetition_penalty: gr.Slider
    top_k: gr.Number
    stop_strings: gr.Textbox

    def inputs(self) -> list[gr.components.Component]:
        """All of them."""
        return list(vars(self).values())


@dataclass(frozen=True)
class ModelPanel:
    """What loads and unloads a model."""

    status: gr.HTML
    name: gr.Dropdown
    token: gr.Textbox
    dtype: gr.Dropdown
    quantization: gr.Dropdown
    load: gr.Button
    cancel: gr.Button
    unload: gr.Button


@dataclass(frozen=True)
class ScorePanel:
    """What takes a text that somebody else wrote."""

    question: gr.Textbox
    answer: gr.Textbox
    score: gr.Button


def build_score_panel() -> ScorePanel:
    """A question, its ready answer, and the button that has it scored."""
    gr.HTML('<p class="uq-note">Tint a text that is already written. Nothing is generated.</p>')
    question = gr.Textbox(label="Question", lines=2, max_lines=6, elem_id="uq-score-question")
    answer = gr.Textbox(label="Answer to score", lines=6, max_lines=14, elem_id="uq-score-answer")
    return ScorePanel(question, answer, gr.Button("Score", variant="primary", size="sm", elem_id="uq-score"))


def build_settings() -> Settings:
    """The sampling controls, all at the values a script would get too."""
    default, half = GenerationConfig(), "uq-half"
    return Settings(
        system=gr.Textbox(label="System prompt", lines=2, max_lines=6, placeholder="None"),
        max_new_tokens=gr.Number(
            default.max_new_tokens, label="Tokens at most", precision=0, minimum=1, elem_classes=half, min_width=0
        ),
        seed=gr.Number(default.seed, label="Seed", precision=0, minimum=0, elem_classes=half, min_width=0),
        temperature=gr.Slider(0, 2, default.temperature, step=0.05, label="Temperature (0: greedy)"),
        top_p=gr.Slider(0.01, 1, default.top_p, step=0.01, label="Top-p (1: off)"),
        min_p=gr.Slider(0, 1, default.min_p, step=0.01, label="Min-p (0: off)"),
        repetition_penalty=gr.Slider(
            0.5, 2, default.repetition_penalty, step=0.05, label="Repetition penalty (1: off)"
        ),
        top_k=gr.Number(default.top_k, label="Top-k (0: off)", precision=0, minimum=0, elem_classes=half, min_width=0),
        stop_strings=gr.Textbox(
            label="Stop strings", lines=1, max_lines=4, placeholder="One a line", elem_classes=half, min_width=0
        ),
    )


def build_model_panel(models: Sequence[tuple[str, str]]) -> ModelPanel:
    """Choose a model and how it runs. `models` are (label, name)."""
    status = gr.HTML("", elem_id="uq-model-status")
    name = gr.Dropdown(
        list(models),
        value=models[0][1] if models else None,
        label="Model",
        info="A known one, or type a Hub id, a folder or a GGUF file.",
        allow_custom_value=True,
        elem_id="uq-model-name",
    )
    dtype = gr.Dropdown(
        [("automatic", ""), "float32", "bfloat16", "float16"],
        value="",
        label="Number format",
        elem_id="uq-model-dtype",
        elem_classes="uq-half",
        min_width=0,
    )
    quantization = gr.Dropdown(
        [("none", ""), "int8", "bnb-8bit", "bnb-4bit"],
        value="",
        label="Quantization",
        elem_id="uq-model-quantization",
        elem_classes="uq-half",
        min_width=0,
    )
    token = gr.Textbox(
        label="Hub token",
        info="For gated models; kept in memory only.",
        type="password",
        elem_id="uq-model-token",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
    )
    with gr.Row(elem_id="uq-model-buttons"):
        load = gr.Button("Load", variant="primary", size="sm", min_width=0, elem_id="uq-model-load")
        cancel = gr.Button("Cancel", size="sm", min_width=0, interactive=False, elem_id="uq-model-cancel")
        unload = gr.Button("Unload", size="sm", min_width=0, elem_id="uq-model-unload")
    return ModelPanel(status, name, token, dtype, quantization, load, cancel, unload)
