"""What the loaded model can be asked to estimate, as a list for everybody. Knows no thread, no answer and no page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uqchat.errors import UqchatError
from uqchat.types import Level

if TYPE_CHECKING:
    from uqchat.artifacts import EstimatorChoice
    from uqchat.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Offer:
    """An estimator as it is listed. `card` is Markdown, `refusal` says why this model cannot serve it.

    `is_costly`: it reads on when the answer is whole, or runs more rows beside it, which `cost` tells in a few words:
    so it runs only for who asks for it. `is_added`: named on the page, by folder or Hub id. `scope` and `answer_scope`
    name what tokens' and answers' values are calibrated on.
    """

    name: str
    label: str
    level: Level = "token"
    unit: str = ""
    value_map: str = ""
    refusal: str | None = None
    card: str | None = None
    notes: tuple[str, ...] = ()
    is_costly: bool = False
    is_added: bool = False
    scope: str | None = None
    answer_scope: str | None = None
    cost: str = ""


def offers_of(model: LanguageModel, added: Iterable[str] = ()) -> tuple[Offer, ...]:
    """Everything that has a name with this model, then what was added by folder or Hub id and may not fit it."""
    choices = model.available
    names = {choice.name for choice in choices}
    found = [_offer(model, choice) for choice in choices]
    return (*found, *(_added(model, name) for name in added if name not in names))


def _added(model: LanguageModel, name: str) -> Offer:
    try:
        return _offer(model, model.describe(name), is_added=True)
    except UqchatError as error:
        return Offer(name, name.rstrip("/").rsplit("/", 1)[-1], refusal=str(error), is_added=True)


def _offer(model: LanguageModel, choice: EstimatorChoice, is_added: bool = False) -> Offer:
    label = f"{choice.label} ({choice.name.rstrip('/').rsplit('/', 1)[-1]})" if is_added else choice.label
    facts = (choice.name, label, choice.level, choice.unit, choice.value_map, choice.refusal, choice.card, choice.notes)
    if choice.refusal:
        return Offer(*facts, is_added=is_added)
    one = model.estimator(choice.name)
    fitted = one.calibrations
    return Offer(
        *facts,
        is_costly=bool(one.reads_on or one.cost),
        cost=one.cost,
        is_added=is_added,
        scope=fitted.token.scope.name if fitted and fitted.token else None,
        answer_scope=fitted.answer.scope.name if fitted and fitted.answer else None,
    )
