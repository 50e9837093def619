"""How an ensemble's votes are read, and options written behind an estimator's name. Knows no voter and no step.

A name may carry options: `vote_instant:n_voters=5,weight_noise=0.1` or `vote:score=variance,mode=lagging`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from uqchat.claims_rules import is_function_word
from uqchat.errors import InputError
from uqchat.types import Risk, ScoredToken, Summary, Votes

Score = Literal["mutual_information", "variance", "vote_share", "surprisal"]
Aggregate = Literal["mean", "max", "content"]
Mode = Literal["auto", "lockstep", "lagging"]
T = TypeVar("T")
TINY = 1e-30  # of a probability, where its logarithm is taken


@dataclass(frozen=True, slots=True)
class Reading:
    """What becomes of the votes.

    Raises:
        InputError: an unknown value, on construction.
    """

    score: Score = "mutual_information"
    """A token's risk: mutual information / ln n; or 4 times the variance of its probability over the voters (which is
    1/4 at most); or the share of voters whose likeliest token is another; or -log of its mean probability over the
    voters, which also holds what they agree on."""
    aggregate: Aggregate = "mean"
    """An answer's: the mean over its tokens, their maximum, or the mean over its content tokens: those with a letter or
    a digit that are no function words, or all where there are none."""
    mode: Mode = "auto"
    """"lockstep": voters run beside the answer; "lagging": they read behind it; "auto": behind it when the batch is
    full."""

    def __post_init__(self) -> None:
        """Check every value."""
        hints = get_type_hints(Reading)
        for field in fields(Reading):
            value, allowed = getattr(self, field.name), get_args(hints[field.name])
            if value not in allowed:
                raise InputError(f"{field.name} of an ensemble must be {', '.join(allowed)}; got {str(value)[:40]!r}.")


UNITS: Mapping[Score, tuple[str, str]] = {
    "mutual_information": ("nats of mutual information between token and voter", "mutual information / ln n"),
    "variance": ("variance of the token's probability over the voters", "4 x variance"),
    "vote_share": ("share of voters that would write another token", "the share itself"),
    "surprisal": ("nats, -log of the voters' mean probability", "1 - mean probability"),
}
"""Unit of the raw score, and its map to a value."""


def risk_of(votes: Votes, score: Score) -> Risk:
    """A token's risk from its votes."""
    probabilities = votes.probabilities
    count = len(probabilities)
    if score == "vote_share":
        raw = 1 - votes.vote_share
        return Risk(raw, raw, voters=probabilities)
    if score == "variance":
        mean = fmean(probabilities)
        raw = fmean((p - mean) ** 2 for p in probabilities)
        return Risk(min(4 * raw, 1.0), raw, voters=probabilities)
    if score == "surprisal":
        mean = fmean(probabilities)
        return Risk(1 - mean, -math.log(max(mean, TINY)), voters=probabilities)
    raw, most = votes.mutual_information, math.log(count)
    return Risk(min(raw / most, 1.0) if most else 0.0, raw, voters=probabilities)


def aggregated(tokens: Sequence[ScoredToken], name: str, aggregate: Aggregate) -> tuple[Risk, Summary] | None:
    """An answer's risk other than by the mean, end token and reasoning left out; None without any, or for the mean."""
    own = [token for token in tokens if name in token.risks and not (token.is_end or token.is_reasoning)]
    if not own or aggregate == "mean":
        return None
    risks = [token.risks[name] for token in own]
    raws = [risk.raw for risk in risks]
    summary = Summary(fmean(raws), max(raws), sum(raws))
    if aggregate == "max":
        worst = max(risks, key=lambda risk: risk.raw)
        return Risk(worst.value, worst.raw), summary
    chosen = [token.risks[name] for token in own if is_content(token.text)] or risks
    return Risk(fmean(risk.value for risk in chosen), fmean(risk.raw for risk in chosen)), summary


def is_content(text: str) -> bool:
    """Whether a token's text says something: it has a letter or a digit and is no function word."""
    word = "".join(char for char in text if char.isalnum())
    return bool(word) and not is_function_word(word)


# ---- options behind a name


WITH_OPTIONS = re.compile(r"(?P<base>.+?):(?P<options>\w+=.*)")
OPTION = re.compile(r"(?:^|,)(\w+)=")


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """`vote:n_voters=5,score=variance` -> ("vote", its options as texts)."""
    match = WITH_OPTIONS.fullmatch(name)
    if match is None:
        return name, {}
    parts = OPTION.split(match["options"])[1:]  # key, value, key, value
    return match["base"], dict(zip(parts[::2], parts[1::2], strict=True))


def with_options(settings: T, options: Mapping[str, str]) -> T:
    """A copy of the settings with those of the options that are theirs.

    Raises:
        InputError: a value that cannot be read, or is not allowed.
    """
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    return replace(
        settings, **{name: _read(name, text, kinds[name]) for name, text in options.items() if name in kinds}
    )


def require_known(options: Mapping[str, str], *settings: Any) -> None:
    """Raises InputError on an option that none of the settings has."""
    known = [field.name for one in settings for field in fields(one)]
    for name in options:
        if name not in known:
            raise InputError(f"There is no option {name!r} here. Known: {', '.join(known)}.")


def _read(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"The option {name} must be a {kind.__name__}; got {text[:40]!r}.") from error
