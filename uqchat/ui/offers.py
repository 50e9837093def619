"""What there is to tint by: names in the picker, what is ticked at first, what happens to a choice that went away.

Knows no component and no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uqchat.errors import InputError
from uqchat.host_estimators import Offer
from uqchat.render_names import UNTRAINED, label_of, named
from uqchat.ui.sessions import Session

PREFERRED = ("combination", "uq_head", "probe")
"""What a page tints by that never chose: the first of these whose tokens are calibrated, else `USUAL`."""
USUAL = "entropy"
_LEVELS = {"token": "", "sentence": ", by sentence", "answer": ", whole answer"}
BEFORE = tuple(
    Offer(name, one.label, unit=one.unit, value_map=one.value_map) for name in UNTRAINED for one in [named(name)]
)
"""What is listed until a model is there: the estimators of the stored example."""


def by_name(offers: Sequence[Offer]) -> dict[str, Offer]:
    """The offers by their names."""
    return {offer.name: offer for offer in offers}


def ticked_at_first(offers: Sequence[Offer]) -> list[str]:
    """The estimators that are listed until somebody chooses: all that fit the model and score every answer."""
    return [offer.name for offer in offers or BEFORE if not offer.refusal and not offer.is_costly]


def usual_as_none(listed: Sequence[str] | None, offers: Sequence[Offer]) -> tuple[str, ...] | None:
    """None for a list that is the usual one, so that it follows what the model offers."""
    return None if listed is None or set(listed) == set(ticked_at_first(offers)) else tuple(listed)


def ticked(session: Session, offers: Sequence[Offer]) -> list[str]:
    """The estimators that this tab lists."""
    if session.listed is None:
        return ticked_at_first(offers)
    return [offer.name for offer in offers or BEFORE if offer.name in session.listed]


def picker(session: Session, offers: Sequence[Offer]) -> list[tuple[str, str]]:
    """(label, name) of what to tint by, what cannot be used at the end; without a model, the choice as it was too."""
    ordered = sorted(offers or BEFORE, key=lambda offer: offer.refusal is not None)
    rows = [(_picker_label(offer), offer.name) for offer in ordered]
    if session.view.estimator not in [name for _, name in rows]:
        rows.append((label_of(session.view.estimator), session.view.estimator))
    return rows


def list_rows(offers: Sequence[Offer]) -> list[tuple[str, str]]:
    """(label, name) of the estimators that can be listed."""
    return [(offer.label, offer.name) for offer in offers or BEFORE if not offer.refusal]


def _picker_label(offer: Offer) -> str:
    cost = f", {offer.cost}" if offer.cost else ""
    return f"{offer.label}{_LEVELS[offer.level]}{' – not with this model' if offer.refusal else cost}"


def require_offered(session: Session, name: str, offers: Sequence[Offer]) -> None:
    """Raises InputError on an estimator that is not in the picker."""
    known = [offer_name for _, offer_name in picker(session, offers)]
    if name not in known:
        raise InputError(f"Unknown estimator {str(name)[:80]!r}. Known: {', '.join(known)}.")


def _best(offered: dict[str, Offer]) -> str | None:
    """What to tint by when nobody has chosen; None when nothing can be used."""
    usable = {name: offer for name, offer in offered.items() if not offer.refusal}
    trained = (name for name in PREFERRED if name in usable and usable[name].scope and not usable[name].is_costly)
    return next(trained, USUAL if USUAL in usable else next(iter(usable), None))


def settle(session: Session, offers: Sequence[Offer]) -> str | None:
    """Make the tab's choice one that the model offers; what to tell the reader when it was another one."""
    offered, now = by_name(offers), session.view.estimator
    if not offers or (now in offered and not offered[now].refusal and not session.follows_default):
        return None
    new = _best(offered) or now
    session.view = replace(session.view, estimator=new)
    if session.follows_default or new == now:
        return None
    label = label_of(now, offered)
    reason = offered[now].refusal if now in offered else f"{label} is not there with this model."
    return f"{reason} Answers are tinted by {label_of(new, offered)} now."
