"""Metrics against values derived by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uqchat.errors import InputError
from uqchat.metrics import average_precision


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_average_precision_sums_precision_times_recall_gained(kind: type) -> None:
    """Errors at ranks 1 and 3 of 4: (1/1) * 1/2 + (2/3) * 1/2 = 5/6."""
    assert average_precision(kind([0.9, 0.8, 0.7, 0.1]), kind([1, 0, 1, 0])) == pytest.approx(5 / 6)


def test_equal_risks_enter_together_whatever_their_order() -> None:
    """All three alike: precision 1/3 at full recall."""
    assert average_precision([1, 1, 1], [0, 1, 0]) == average_precision([1, 1, 1], [1, 0, 0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(("risk", "is_error"), [([1, 2], [1]), ([1, 2], [0, 0]), ([float("nan"), 1], [1, 0]), ([], [])])
def test_average_precision_refuses_what_it_cannot_rank(risk: list[float], is_error: list[int]) -> None:
    with pytest.raises(InputError):
        average_precision(risk, is_error)
