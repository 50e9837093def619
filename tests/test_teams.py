"""What computes beside the model's thread leaves no team of threads behind, and the settings as they were."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.errors import InputError
from uqchat.language_model import from_loaded
from uqchat.teams import alone, in_a_thread


@pytest.fixture(autouse=True)
def three_threads():
    """More than one, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_what_is_made_in_a_thread_comes_back_and_the_thread_is_gone() -> None:
    made_by = in_a_thread(threading.current_thread)
    assert made_by is not threading.current_thread() and not made_by.is_alive()


def test_an_error_in_the_thread_is_raised_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise InputError("no such file")

    with pytest.raises(InputError, match="no such file"):
        in_a_thread(fail)


def test_alone_is_over_when_it_ends_or_fails() -> None:
    with alone(), alone():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), alone():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_the_models_thread_has_the_threads_that_were_set_though_others_score_alone() -> None:
    model, seen = from_loaded(tiny_model()), []
    step = model.engine.step

    def watched():
        seen.append(torch.get_num_threads())
        return step()

    model.engine.step = watched
    for _ in range(2):
        list(model.stream("Hello there", estimators=["entropy", "max_prob"]))
    assert set(seen) == {3} and torch.get_num_threads() == 3
