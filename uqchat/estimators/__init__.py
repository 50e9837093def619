"""The explicit lists of estimators: a new one is a file beside this and a line below."""

from __future__ import annotations

from collections.abc import Iterable

from uqchat.errors import InputError
from uqchat.estimators.base import Estimator
from uqchat.estimators.combination import Combination
from uqchat.estimators.dropout import Dropout, InstantDropout
from uqchat.estimators.entropy import Entropy
from uqchat.estimators.lookback import Lookback
from uqchat.estimators.margin import Margin
from uqchat.estimators.max_prob import MaxProb
from uqchat.estimators.probe import Probe
from uqchat.estimators.query import QueryEstimator, ZeroShotQuery
from uqchat.estimators.rauq import Rauq
from uqchat.estimators.sculpt import Sculpt
from uqchat.estimators.uq_head import UqHead
from uqchat.estimators.vote import InstantVote, Vote

ESTIMATORS: tuple[type[Estimator], ...] = (
    Entropy,
    MaxProb,
    Margin,
    Rauq,
    Lookback,
    ZeroShotQuery,
    InstantVote,
    InstantDropout,
)
"""Those that work with any model, without training."""
TRAINED: tuple[type[Estimator], ...] = (
    UqHead,
    Probe,
    QueryEstimator,
    Combination,
    Sculpt,
    Vote,
    Dropout,
)
"""Those that are read from a folder, see `uqchat.artifacts`."""
ESTIMATOR_NAMES: tuple[str, ...] = tuple(one.name for one in ESTIMATORS if one.level == "token" and not one.cost)
"""Of the untrained ones that need nothing beyond the answer's own steps."""


def get_estimators(names: str | Iterable[str]) -> list[Estimator]:
    """Untrained estimators by name, in the order given, each once.

    Raises:
        InputError: an unknown name; the text lists the known ones.
    """
    by_name = {estimator.name: estimator for estimator in ESTIMATORS}
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise InputError(f"Unknown estimator {unknown[0]!r}. Known: {', '.join(by_name)}.")
    return [by_name[name]() for name in wanted]
