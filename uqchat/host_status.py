"""What the host says of itself to everybody who asks. Knows no thread and no page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from uqchat.host_estimators import Offer

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel

State = Literal["loading", "ready", "switching", "failed", "empty"]


@dataclass(frozen=True, slots=True)
class HostStatus:
    """`message` is one sentence for everybody; `done` and `total` are bytes; `error` is why the last job failed.

    `adding` names the estimator that is being opened, `adding_error` says why the last one could not be.
    """

    state: State
    model: str | None
    message: str
    done: int | None = None
    total: int | None = None
    error: str | None = None
    details: str = ""
    offers: tuple[Offer, ...] = ()
    adding: str | None = None
    adding_error: str | None = None

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the estimators that every answer is scored by: all that fit the model and cost next to nothing."""
        return tuple(offer.name for offer in self.offers if not offer.refusal and not offer.is_costly)

    def estimators_with(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Those, and of the costly ones those that are wanted."""
        wanted = set(wanted)
        usable = [offer for offer in self.offers if not offer.refusal]
        return tuple(offer.name for offer in usable if not offer.is_costly or offer.name in wanted)


EMPTY = HostStatus("empty", None, "No model is loaded.")


def details_of(model: LanguageModel) -> str:
    """Number format, device, context window and what a reader should know of the model, as one line."""
    info = model.info
    number_format = f"{info.dtype}, {info.quantization}" if info.quantization else info.dtype
    parts = [f"{number_format} on {info.device}, {info.context_window:,} tokens", *info.notes]
    return "; ".join(parts)
