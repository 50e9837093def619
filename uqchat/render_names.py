"""Names of estimators for people, where the model that offers them is not loaded. Knows no estimator and no model.

What the estimators say of themselves is the truth, and a test compares; importing them brings torch, which drawing does
not wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


class NameLike(Protocol):
    """What drawing needs to know of an estimator; `scope` names what its tokens' values are calibrated on."""

    @property
    def label(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def value_map(self) -> str: ...
    @property
    def scope(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Named:
    """A `NameLike` of its own."""

    label: str
    unit: str = ""
    value_map: str = ""
    scope: str | None = None


VOTES = ("nats of mutual information between token and voter", "mutual information / ln n")
BUILT_IN: dict[str, Named] = {
    "entropy": Named("Entropy", "nats", "1 - exp(-entropy)"),
    "max_prob": Named("Maximum probability", "nats, -log of the largest probability", "1 - largest probability"),
    "margin": Named("Margin", "difference of probabilities, subtracted from 1", "1 - (largest - second probability)"),
    "rauq": Named("RAUQ", "1 - log of the probability carried along", "1 - probability carried along by attention"),
    "lookback": Named("Lookback ratio", "share of attention on the answer's own words", "the share itself"),
    "query_zero_shot": Named("Query, untrained", "log odds of the reply no", "1 / (1 + exp(-log odds))"),
    "vote_instant": Named("Vote (instant)", *VOTES),
    "dropout_instant": Named("Dropout (instant)", *VOTES),
    "uq_head": Named("UQ head", "logit of being wrong", "1 / (1 + exp(-logit))"),
    "probe": Named("Probe", "log odds of being wrong", "1 / (1 + exp(-log odds))"),
    "query": Named("Query (LoRA + prompt)", "log odds of the reply no", "1 / (1 + exp(-log odds))"),
    "combination": Named("Combination", "log odds of being wrong", "1 / (1 + exp(-log odds))"),
    "sculpt": Named("Sculpt (predicted variance)", "nats", "1 - exp(-score)"),
    "vote": Named("Vote", *VOTES),
    "dropout": Named("Dropout", *VOTES),
}
UNTRAINED = ("entropy", "max_prob", "margin", "rauq")
"""What is listed until a model is there."""


def named(name: str, known: Mapping[str, NameLike] | None = None) -> NameLike:
    """What is known of the estimator; of a folder or a Hub id the last part is its label."""
    if known and name in known:
        return known[name]
    return BUILT_IN.get(name) or Named(name.rstrip("/").rsplit("/", 1)[-1])


def label_of(name: str, known: Mapping[str, NameLike] | None = None) -> str:
    """The estimator's label."""
    return named(name, known).label
