"""The list of estimators with their cards, and the catalogue of published heads, as HTML. Pure; knows no component."""

from __future__ import annotations

import re
from collections.abc import Sequence

from uqchat.catalogue import HeadChoice, known_heads
from uqchat.host import HostStatus
from uqchat.host_estimators import Offer
from uqchat.marks import MIN_MARKS
from uqchat.render import encode, markdown_to_html

_LEVELS = {"token": "every token", "sentence": "sentences", "answer": "the whole answer"}
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def estimators_html(status: HostStatus, can_change: bool) -> str:
    """What the loaded model can be asked to estimate, each with its card, and what is being added.

    Args:
        can_change: whether estimators may be added and removed here.
    """
    if not status.offers:
        rows = '<p class="uq-note">The list appears when a model is loaded.</p>'
    else:
        rows = "".join(_estimator(offer, can_change) for offer in status.offers)
    return f'<section class="uq-heads" aria-label="Estimators"><h2>Estimators</h2>{rows}{_progress(status)}</section>'


def _estimator(offer: Offer, can_change: bool) -> str:
    state = "not with this model" if offer.refusal else "calibrated" if _scopes(offer) else "not calibrated"
    refused = " uq-refused" if offer.refusal else ""
    remove = ""
    if offer.is_added and can_change:
        remove = _button("head_remove", offer.name, "Remove", f"Remove {offer.label} from the list")
    facts = "".join(f"<li>{encode(fact)}</li>" for fact in _facts(offer))
    card = markdown_to_html(_FRONT_MATTER.sub("", offer.card)) if offer.card else ""
    card = f'<div class="uq-card uq-md" tabindex="0" role="region" aria-label="Card">{card}</div>' if card else ""
    refusal = f'<p class="uq-refusal">{encode(offer.refusal)}</p>' if offer.refusal else ""
    return (
        f'<details class="uq-head{refused}"><summary><b>{encode(offer.label)}</b> <span>{state}</span></summary>'
        f"{refusal}<ul>{facts}</ul>{card}{remove}</details>"
    )


def _facts(offer: Offer) -> list[str]:
    facts = [f"Scores {_LEVELS[offer.level]}; asked for as {offer.name}."]
    if offer.value_map:
        facts.append(f"Raw in {offer.unit}; uncalibrated, risk is {offer.value_map}.")
    facts += [f"Values are probabilities of error within: {scope}." for scope in _scopes(offer)]
    if offer.cost:
        facts.append(
            f"Costs {offer.cost} that read and run beside each answer, so it runs only where it is listed or tinted by."
        )
    elif offer.is_costly:
        facts.append("Reads the answer once more when it is whole, so it runs only where it is listed or tinted by.")
    return [*facts, *offer.notes]


def _scopes(offer: Offer) -> list[str]:
    named = {"tokens": offer.scope, "answers": offer.answer_scope}
    return [f"{scope} ({level})" for level, scope in named.items() if scope]


def _progress(status: HostStatus) -> str:
    if status.adding:
        words = encode(f"Opening {status.adding}")
        return f'<p class="uq-note" role="status">{words} <progress aria-label="Opening"></progress></p>'
    if status.adding_error:
        return f'<p class="uq-chip uq-chip-error" role="alert">{encode(status.adding_error)}</p>'
    return ""


def refit_words(right: int, wrong: int) -> str:
    """What the button says that fits the tinting estimator's calibration to the user's marks."""
    marks = right + wrong
    if marks < MIN_MARKS:
        return f"Refit: {marks} of {MIN_MARKS} marks"
    return f"Refit with {marks} marks" if min(right, wrong) else "Refit: all marks agree"


def heads_html(model: str | None, is_ready: bool) -> str:
    """Published heads by the model they were trained on, those for the loaded one first."""
    heads = sorted(known_heads(), key=lambda head: not head.fits(model))
    groups: dict[str, list[HeadChoice]] = {}
    for head in heads:
        groups.setdefault(head.base, []).append(head)
    parts = "".join(_group(base, group, model, is_ready) for base, group in groups.items())
    return f'<section class="uq-heads" aria-label="Published heads"><h3>Published heads</h3>{parts}</section>'


def _group(base: str, heads: Sequence[HeadChoice], model: str | None, is_ready: bool) -> str:
    is_fit = heads[0].fits(model)
    mark = ' <span class="uq-fits">fits the loaded model</span>' if is_fit else ""
    rows = "".join(
        f"<li><span>{encode(head.name.rsplit('/', 1)[-1])}<small>{encode(_size(head))}</small></span>"
        f"{_button('head_add', head.name, 'Load', f'Load {head.name}', is_ready and is_fit)}</li>"
        for head in heads
    )
    return f"<p><b>{encode(base)}</b>{mark}</p><ul class='uq-catalogue'>{rows}</ul>"


def _size(head: HeadChoice) -> str:
    parts = [f"{head.level}s", f"{head.size_mb} MB" if head.size_mb else "", head.note]
    return ", ".join(part for part in parts if part)


def _button(action: str, name: str, text: str, label: str, is_on: bool = True) -> str:
    return (
        f'<button type="button" class="uq-button" data-action="{action}" data-text="{encode(name)}" '
        f'aria-label="{encode(label)}"{"" if is_on else " disabled"}>{text}</button>'
    )
