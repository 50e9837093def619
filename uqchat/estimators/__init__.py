"""The explicit list of estimators: a new one is a file beside this and a line below."""

from __future__ import annotations

from collections.abc import Iterable

from uqchat.errors import InputError
from uqchat.estimators.base import Estimator
from uqchat.estimators.entropy import Entropy
from uqchat.estimators.margin import Margin
from uqchat.estimators.max_prob import MaxProb
from uqchat.estimators.rauq import Rauq

ESTIMATORS: tuple[type[Estimator], ...] = (Entropy, MaxProb, Margin, Rauq)
ESTIMATOR_NAMES: tuple[str, ...] = tuple(estimator.name for estimator in ESTIMATORS)


def get_estimators(names: str | Iterable[str]) -> list[Estimator]:
    """Estimators by name, in the order given, each once.

    Raises:
        InputError: an unknown name; the text lists the known ones.
    """
    by_name = {estimator.name: estimator for estimator in ESTIMATORS}
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise InputError(f"Unknown estimator {unknown[0]!r}. Known: {', '.join(by_name)}.")
    return [by_name[name]() for name in wanted]
