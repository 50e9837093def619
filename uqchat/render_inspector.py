"""One token opened: sentence, figures, alternatives, every estimator's view; and the legend. Pure; knows no page."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from uqchat.render_names import NameLike, named
from uqchat.render_text import encode, percent, probability, quoted, visible_whitespace
from uqchat.render_units import BIN_EDGES, CLAIM_MODES, RiskView, Unit, risk_bins, units
from uqchat.types import Alternative, Risk, ScoredToken

_NEARLY = 0.1  # a runner-up at least this likely was "nearly" written
_FIFTHS = ("lowest", "second", "middle", "fourth", "highest")
_EMPTY = (
    '<div class="uq-inspect uq-empty"><h2>Token</h2><p>Click a word of an answer, or press <kbd>Tab</kbd> until an '
    "answer is focused and walk with <kbd>←</kbd> <kbd>→</kbd>, then <kbd>Enter</kbd>.</p><p>Here you will see how "
    "sure the model was of it and what it could have written instead.</p></div>"
)


def inspector_html(
    token: ScoredToken | None,
    tokens: Sequence[ScoredToken],
    view: RiskView,
    message_id: str = "",
    can_continue: bool = True,
    known: Mapping[str, NameLike] | None = None,
) -> str:
    """The inspector for one token of `tokens`; without a token, a hint how to open one.

    Args:
        can_continue: whether "continue from here" is offered; off for a message that may not be branched.
        known: the estimators that can be named, by name.
    """
    if token is None:
        return _EMPTY
    pieces = units(tokens, view.estimator)
    unit = next((unit for unit in pieces if token.index in (tokens[i].index for i in unit.positions)), None)
    bins = risk_bins(tokens, view)
    position = next((i for i, other in enumerate(tokens) if other.index == token.index), 0)
    return "".join(
        [
            f'<div class="uq-inspect" data-m="{encode(message_id)}" data-i="{token.index}">',
            _header(token, unit, pieces, message_id),
            f'<p class="uq-sentence">{encode(token_sentence(token))}</p>',
            _group_note(unit, tokens),
            _figures(token, sum(not other.is_end for other in tokens)),
            _alternatives(token, message_id, can_continue),
            _estimators(token, view, bins[position], known or {}),
            "</div>",
        ]
    )


def token_sentence(token: ScoredToken) -> str:
    """What happened at this token, in plain words; plain text, not HTML."""
    chosen = "the end of the answer" if token.is_end else _spoken(token.text) if token.text else "a part of a character"
    share = percent(probability(token.logprob))
    others = [other for other in token.alternatives if other.token_id != token.token_id]
    if not others:
        return f"The model gave {chosen} {share}."
    best = others[0]
    name, best_share = _name(best), percent(probability(best.logprob))
    if best.logprob > token.logprob:
        return f"The likeliest was {name}, {best_share}; the model gave {chosen} {share}."
    if probability(best.logprob) >= _NEARLY:
        return f"The model gave {chosen} {share} and nearly wrote {name}, {best_share}."
    return f"The model gave {chosen} {share}; next came {name}, {best_share}."


def _name(alternative: Alternative) -> str:
    return _spoken(alternative.text) if alternative.text else "a special or partial token"


def _spoken(text: str) -> str:
    return {"\n": "a line break", "\n\n": "an empty line", " ": "a space"}.get(text) or quoted(text)


def _header(token: ScoredToken, unit: Unit | None, pieces: Sequence[Unit], message_id: str) -> str:
    text = visible_whitespace(unit.text) if unit else "end" if token.is_end else "…"
    order = [piece.index for piece in pieces]
    here = order.index(unit.index) if unit else len(order) if token.is_end else -1
    before = order[here - 1] if here > 0 else None
    after = order[here + 1] if 0 <= here < len(order) - 1 else None
    return (
        f'<header><h2 class="uq-token-text"><bdi>{encode(text)}</bdi></h2><nav aria-label="Tokens">'
        f"{_step('Previous token', 'prev', before, message_id)}{_step('Next token', 'next', after, message_id)}"
        '<button type="button" class="uq-icon uq-i-close" data-action="close" aria-label="Close" title="Close (Esc)">'
        "</button></nav></header>"
    )


def _step(label: str, icon: str, index: int | None, message_id: str) -> str:
    target = "disabled" if index is None else f'data-index="{index}"'
    return (
        f'<button type="button" class="uq-icon uq-i-{icon}" data-action="token" data-message="{encode(message_id)}" '
        f'{target} aria-label="{label}" title="{label}"></button>'
    )


def _group_note(unit: Unit | None, tokens: Sequence[ScoredToken]) -> str:
    if unit is None or len(unit.positions) == 1:
        return ""
    ids = ", ".join(str(tokens[i].token_id) for i in unit.positions)
    return (
        f'<p class="uq-note">This character is made of {len(unit.positions)} tokens ({ids}). '
        "It is drawn with the largest of their risks; the figures below are the last one's.</p>"
    )


def _figures(token: ScoredToken, total: int) -> str:
    rank = next((i for i, other in enumerate(token.alternatives, 1) if other.token_id == token.token_id), None)
    count = {10: "ten"}.get(len(token.alternatives), str(len(token.alternatives)))
    rows = [
        ("Token probability", percent(probability(token.logprob))),
        ("Rank", f"{rank}" if rank else f"beyond the {count} likeliest" if token.alternatives else "not known"),
        ("Entropy", "not known" if token.entropy is None else f"{token.entropy:.2f} nats"),
        ("Position", "the end" if token.is_end else f"{token.index + 1} of {total}"),
        ("Token id", str(token.token_id)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{encode(value)}</dd></div>" for name, value in rows)
    return f'<dl class="uq-figures">{cells}</dl>'


def _alternatives(token: ScoredToken, message_id: str, can_continue: bool) -> str:
    if not token.alternatives:
        return ""
    rows = "".join(_alternative(other, token, message_id, can_continue) for other in token.alternatives)
    title = "The model could have written"
    return f'<section aria-label="{title}"><h3>{title}</h3><ol class="uq-alternatives">{rows}</ol></section>'


def _alternative(other: Alternative, token: ScoredToken, message_id: str, can_continue: bool) -> str:
    is_chosen = other.token_id == token.token_id
    share = probability(other.logprob)
    text = encode(visible_whitespace(other.text)) if other.text else f"<i>id {other.token_id}</i>"
    button = ""
    if can_continue and not is_chosen:
        spoken = encode(f"Continue from here with {_spoken(other.text) if other.text else f'token {other.token_id}'}")
        button = (
            f'<button type="button" class="uq-icon uq-i-branch" data-action="continue" '
            f'data-message="{encode(message_id)}" data-index="{token.index}" data-token-id="{other.token_id}" '
            f'aria-label="{spoken}" title="Continue from here with this"></button>'
        )
    chosen = ' class="uq-chosen"' if is_chosen else ""
    return (
        f'<li{chosen}><span class="uq-alt-text"><bdi>{text}</bdi></span>'
        f'<span class="uq-bar"><span style="width:{share * 100:.1f}%"></span></span>'
        f'<span class="uq-share">{encode(percent(share, is_short=True))}</span>{button or "<span></span>"}</li>'
    )


def _estimators(token: ScoredToken, view: RiskView, shown_bin: int | None, known: Mapping[str, NameLike]) -> str:
    if token.is_reasoning:
        return '<p class="uq-note">Reasoning is not part of the risk.</p>'
    if not token.risks:
        return ""
    rows = "".join(_estimator(name, risk, name == view.estimator, known) for name, risk in token.risks.items())
    notes = []
    if view.scale == "relative" and shown_bin is not None:
        notes.append(f"Tinted by its place within this answer: {_FIFTHS[shown_bin]} fifth.")
    if any(risk.calibration is None for risk in token.risks.values()):
        which = (
            "Where no scope is named, a value is" if any(r.calibration for r in token.risks.values()) else "Values are"
        )
        notes.append(f"{which} not calibrated: higher is riskier, but it is no chance of error.")
    title, note = "Risk, by estimator", " ".join(notes)
    return (
        f'<section aria-label="{title}"><h3>{title}</h3><ul class="uq-views">{rows}</ul>'
        f'<p class="uq-note">{note}</p></section>'
    )


def _estimator(name: str, risk: Risk, is_shown: bool, known: Mapping[str, NameLike]) -> str:
    value = min(1.0, max(0.0, risk.value)) if risk.value == risk.value else 0.0
    scope = f" · probability of error within {risk.calibration}" if risk.calibration else ""
    one = named(name, known)
    shown = ' class="uq-shown"' if is_shown else ""
    fill = f"uq-bar uq-fill{bisect_right(BIN_EDGES, value)}"
    votes = f" · voters give it {', '.join(percent(p, is_short=True) for p in risk.voters)}" if risk.voters else ""
    return (
        f'<li{shown}><span class="uq-view-name">{encode(one.label)}</span>'
        f'<span class="{fill}"><span style="width:{value * 100:.1f}%"></span></span>'
        f'<span class="uq-share">{value:.2f}</span>'
        f'<span class="uq-raw">{risk.raw:.3g} {encode(one.unit + scope + votes)}</span></li>'
    )


def legend_html(
    estimator: str,
    view: RiskView,
    calibration: str | None = None,
    known: Mapping[str, NameLike] | None = None,
) -> str:
    """What the colours mean: estimator, unit, map, five swatches with their underline.

    Args:
        calibration: the scope in which the shown value is a probability of error; None says "not calibrated".
        known: the estimators that can be named, by name.
    """
    one = named(estimator, known)
    if view.scale == "absolute":
        names = ("0 – 0.2", "0.2 – 0.4", "0.4 – 0.6", "0.6 – 0.8", "0.8 – 1")
    else:
        names = ("lowest fifth", "2nd", "3rd", "4th", "highest fifth")
    swatches = "".join(f'<li><span class="uq-swatch uq-b{i}">Aa</span>{name}</li>' for i, name in enumerate(names))
    text = _calibrated(calibration, view) if calibration else _uncalibrated(one)
    scale = "" if view.scale == "absolute" else " Colours compare tokens within one answer only."
    return (
        f'<div class="uq-legend"><span class="uq-legend-name">{encode(one.label)}</span>'
        f'<ol class="uq-swatches" aria-label="Risk, from low to high">{swatches}</ol>'
        f'<span class="uq-legend-note">{encode(text + scale)}</span></div>'
    )


def _calibrated(scope: str, view: RiskView) -> str:
    what = "mean of the tokens' probability" if view.mode in CLAIM_MODES else "probability"
    return f"Calibrated for {scope}. Risk = {what} of error within that scope."


def _uncalibrated(one: NameLike) -> str:
    how = f"Risk = {one.value_map}, raw in {one.unit}. " if one.value_map else ""
    return f"{how}Not calibrated: higher is riskier, it is not a chance of error."
