"""The newest answer read again by a costly estimator that the tab tints by and that was not asked before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uqchat.conversation import AskSettings
from uqchat.conversation_rescore import require_rescorable
from uqchat.errors import BusyError, InputError
from uqchat.ui.offers import by_name
from uqchat.ui.services import Services
from uqchat.ui.sessions import Session


def begin_second_reading(services: Services, user: str, session: Session, settings: AskSettings) -> bool:
    """Begin it, and let the tab draw it; False where there is nothing to read or it was tried in this tab before."""
    status, name = services.host.status(), session.view.estimator
    offer = by_name(status.offers).get(name)
    if offer is None or offer.refusal or not offer.is_costly or session.chat_id is None or session.is_busy:
        return False
    newest = _last(services.store.path(user, session.chat_id))
    if newest is None or (newest.id, name) in session.read_again:
        return False
    try:
        require_rescorable(newest, status.model or "", name)
        session.read_again.add((newest.id, name))
        session.draw(services.conversations.rescore(user, newest.id, name, settings))
    except (InputError, BusyError):  # not this answer, or not now
        return False
    return True


def _last(branch: Sequence[Any]) -> Any:
    return branch[-1] if branch else None
