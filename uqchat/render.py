"""Scored tokens and messages as HTML: everything the page shows of them. Pure; knows no Gradio, no store, no model.

Every string that a model or a person wrote is escaped here, because the page inserts this HTML as it is.
The parts live in the `render_*` files; this one is the name the rest of the program uses.
"""

from uqchat.render_claims import claims_html
from uqchat.render_inspector import inspector_html, legend_html, token_sentence
from uqchat.render_messages import conversation_html, live_answer_html, welcome_html
from uqchat.render_names import NameLike, label_of
from uqchat.render_strip import strip_figure
from uqchat.render_text import encode, markdown_to_html, percent
from uqchat.render_tokens import answer_line, tokens_to_html
from uqchat.render_units import CLAIM_MODES, RiskView, risk_bins

__all__ = [
    "CLAIM_MODES",
    "NameLike",
    "RiskView",
    "answer_line",
    "claims_html",
    "conversation_html",
    "encode",
    "inspector_html",
    "label_of",
    "legend_html",
    "live_answer_html",
    "markdown_to_html",
    "percent",
    "risk_bins",
    "strip_figure",
    "token_sentence",
    "tokens_to_html",
    "welcome_html",
]
