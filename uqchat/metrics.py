"""How well risks rank errors. Plain numbers in, plain numbers out; knows no model and no estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from uqchat.errors import InputError

Numbers = Sequence[float] | Any


def average_precision(risk: Numbers, is_error: Numbers) -> float:
    """Area under the precision-recall curve of finding errors by risk: the sum of precision times recall gained.

    Equal risks enter together, so their order does not matter.

    Args:
        risk: (N,), higher is riskier. is_error: (N,), 1 or True for an error. Lists, arrays or tensors.

    Raises:
        InputError: different lengths, no error among the labels, or a risk that is no number.
    """
    scores = torch.as_tensor(risk, dtype=torch.float64).flatten()
    labels = torch.as_tensor(is_error).flatten().double()
    if len(scores) != len(labels):
        raise InputError(f"{len(scores)} risks but {len(labels)} labels; give one for each.")
    if scores.isnan().any() or not labels.any():
        raise InputError("Average precision needs at least one error, and a number as every risk.")
    order = scores.argsort(descending=True)
    scores, hits = scores[order], labels[order].cumsum(0)
    ends = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])]).nonzero()[:, 0]
    precision = hits[ends] / (ends + 1)
    gained = hits[ends].diff(prepend=hits.new_zeros(1)) / hits[-1]
    return float((precision * gained).sum())
