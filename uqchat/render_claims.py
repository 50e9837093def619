"""Claims of an answer tinted, listed worst first, and summed up in one sentence. Pure; knows no page and no store."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uqchat.claims import ClaimRisk, answer_spans, claim_risks
from uqchat.render_names import NameLike, label_of
from uqchat.render_text import encode, plural, quoted, shortened
from uqchat.render_units import BIN_EDGES, RiskView, Unit, bins_of
from uqchat.types import ScoredToken

_WORDS = {"sentence": "sentence", "entity": "fact"}
_MAX_QUOTED = 3
_MAX_CHARS = 160


@dataclass(frozen=True, slots=True)
class TintedClaim:
    """A claim and its bin, 0 to 4."""

    claim: ClaimRisk
    bin: int


def claims_in(tokens: Sequence[ScoredToken], view: RiskView) -> list[TintedClaim]:
    """The answer's claims in order, as `view` tints them: their mean risk, on the view's scale."""
    kind = "entity" if view.mode == "entity" else "sentence"
    claims = claim_risks(tokens, view.estimator, answer_spans(tokens, kind))
    bins = bins_of([claim.value for claim in claims], view)
    return [TintedClaim(claim, number or 0) for claim, number in zip(claims, bins, strict=True)]


def claim_numbers(pieces: Sequence[Unit], claims: Sequence[TintedClaim]) -> list[int | None]:
    """Which claim each piece belongs to, the first where it is two; white space to the claim on both sides of it."""
    owner: dict[int, int] = {}
    for number, one in enumerate(claims):
        for index in one.claim.indices:
            owner.setdefault(index, number)
    numbers = [owner.get(piece.index) for piece in pieces]
    for i in range(1, len(pieces) - 1):
        if not pieces[i].text.strip() and numbers[i - 1] == next((n for n in numbers[i + 1 :] if n is not None), -1):
            numbers[i] = numbers[i - 1]
    return numbers


def claims_line(tokens: Sequence[ScoredToken], view: RiskView) -> str:
    """One plain-text sentence that says what the colours of the claims say; '' without claims."""
    claims = claims_in(tokens, view)
    if not claims:
        return ""
    total = plural(len(claims), _WORDS[view.mode])
    least = 3 if view.scale == "absolute" else 4
    risky = [one for one in claims if one.bin >= least]
    if not risky:
        return f"None of {total} stands out."
    worst = sorted(risky, key=lambda one: -one.claim.value)[:_MAX_QUOTED]
    shown = ", ".join(quoted(shortened(one.claim.text)) for one in worst)
    verb = "stands" if len(risky) == 1 else "stand"
    where = "" if view.scale == "absolute" else " within this answer"
    return f"{len(risky)} of {total} {verb} out{where}: {shown}{' …' if len(risky) > len(worst) else '.'}"


def claims_html(
    tokens: Sequence[ScoredToken],
    view: RiskView,
    message_id: str,
    known: Mapping[str, NameLike] | None = None,
) -> str:
    """The list of an answer's claims, riskiest first; a press on one shows where it stands."""
    claims = claims_in(tokens, view)
    word = _WORDS[view.mode]
    title = f"{word.capitalize()}s, riskiest first"
    if not claims:
        nothing = f"No {word} of the newest answer has a risk by {label_of(view.estimator, known)}."
        return f'<section class="uq-claims"><h2>{title}</h2><p class="uq-note">{encode(nothing)}</p></section>'
    order = sorted(range(len(claims)), key=lambda number: -claims[number].claim.value)
    texts = {token.index: token.text for token in tokens}
    rows = "".join(_row(number, claims[number], texts, message_id) for number in order)
    return (
        f'<section class="uq-claims" aria-label="{title}"><h2>{title}</h2><ol>{rows}</ol>'
        f'<p class="uq-note">{encode(_note(claims, label_of(view.estimator, known)))}</p></section>'
    )


def _row(number: int, one: TintedClaim, texts: Mapping[int, str], message_id: str) -> str:
    claim = one.claim
    value = min(1.0, max(0.0, claim.value))
    worst = ""
    if len(claim.indices) > 1 and texts.get(claim.worst, "").strip():
        worst = f'<span class="uq-claim-worst">highest at {encode(quoted(shortened(texts[claim.worst])))}</span>'
    text = encode(shortened(claim.text, _MAX_CHARS) if len(claim.text) > _MAX_CHARS else claim.text)
    return (
        f'<li><button type="button" class="uq-claim" data-action="claim" data-message="{encode(message_id)}" '
        f'data-claim="{number}"><span class="uq-bar uq-fill{bisect_right(BIN_EDGES, value)}">'
        f'<span style="width:{value * 100:.1f}%"></span></span><span class="uq-share">{value:.2f}</span>'
        f'<span class="uq-claim-text"><bdi>{text}</bdi></span>{worst}</button></li>'
    )


def _note(claims: Sequence[TintedClaim], label: str) -> str:
    scopes = {one.claim.calibration for one in claims}
    if len(scopes) == 1 and None not in scopes:
        return f"{label} judges whole claims: probability of error, within {scopes.pop()}."
    return f"The mean of the tokens' risk by {label}. For whole claims it is no probability: use it to compare them."
