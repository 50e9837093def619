"""Rows whose logits are no numbers: how they are told from others, and what their askers are told. Knows no forward."""

from __future__ import annotations

import math

from uqchat.engine.backend import Request
from uqchat.errors import ModelError
from uqchat.types import StepSignals

CAUSE = "Its weights are damaged, or too large for the number format"


def find_broken(request: Request, logprob: float, signals: StepSignals | None) -> ModelError | None:
    """The error that says which logits behind a token were NaN or infinite, None where all are numbers.

    Args:
        logprob: of the token; NaN where the logits that decided it were no numbers.
    """
    voter = broken_voter(signals)
    if not math.isnan(logprob) or (voter is not None and _has_votes(signals)):
        return voter
    adapter = f" with the adapter {request.adapter!r}" if request.adapter else ""
    return ModelError(
        f"The model{adapter} gave logits that are NaN or infinite, so they say nothing of the next token. {CAUSE}:"
        " load the model in float32, or choose another."
    )


def broken_voter(signals: StepSignals | None) -> ModelError | None:
    """The error that names a voter whose logits were NaN or infinite, None where there is none."""
    for ensemble, votes in signals.votes.items() if signals else ():
        for number, (name, probability) in enumerate(zip(ensemble.members, votes.probabilities, strict=True), start=1):
            if math.isnan(probability):
                return ModelError(
                    f"Voter {number} of {len(ensemble.members)} ({name}) gave logits that are NaN or infinite, so it"
                    f" cannot judge this answer. {CAUSE}: choose another estimator, train it again, or load the model"
                    " in float32."
                )
    return None


def _has_votes(signals: StepSignals | None) -> bool:
    """Whether any voter has numbers: where none has, it is the model that they share."""
    every = [probability for votes in signals.votes.values() for probability in votes.probabilities] if signals else []
    return not all(map(math.isnan, every))
