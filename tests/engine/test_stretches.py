"""Which rows run through which blocks, when voters differ from some block on only."""

from __future__ import annotations

import pytest
import torch

from tests.random_adapters import low_rank
from tests.tiny import tiny_model
from uqchat.engine.adapters import Adapter, AdapterSet
from uqchat.engine.fast_forward import FastForward
from uqchat.engine.stretches import EVERY, WHOLE, evenly


@pytest.fixture(scope="module")
def parts() -> tuple[FastForward, AdapterSet]:
    model = tiny_model().model  # two blocks
    adapters = AdapterSet(model)
    for name, layer in (("low", "layers.0.self_attn.q_proj"), ("high", "layers.1.mlp.up_proj"), ("head", "lm_head")):
        adapters.add(low_rank(model, name, 2, (layer,), 0.1))
    adapters.add(Adapter("nothing", {}))
    return FastForward(model), adapters


def rows_of(parts: tuple[FastForward, AdapterSet], names: list[str | None], leaders: list[int]) -> list[tuple]:
    forward, adapters = parts
    found = forward._planned.of(adapters, names, leaders)
    count = torch.arange(len(names))
    return [
        (one.start, count[one.rows].tolist(), None if one.entering is None else one.entering.tolist()) for one in found
    ]


def test_a_voter_enters_at_the_first_block_it_changes_with_its_answers_states(parts: tuple) -> None:
    assert rows_of(parts, [None, "high", "head", "nothing"], [0, 0, 0, 0]) == [
        (0, [0], None),
        (1, [0, 1], [0, 0]),
        (2, [0, 1, 2, 3], [0, 1, 0, 0]),
    ]
    assert rows_of(parts, [None, "high", None, "high"], [0, 0, 2, 2]) == [
        (0, [0, 2], None),
        (1, [0, 1, 2, 3], [0, 0, 1, 1]),
    ]


def test_an_answer_runs_through_everything_and_its_own_adapter_keeps_its_voters_beside_it(parts: tuple) -> None:
    assert rows_of(parts, ["high", "head"], [0, 1]) == [(0, [0, 1], None)]
    assert rows_of(parts, ["low", "head"], [0, 0]) == [(0, [0, 1], None)]
    assert rows_of(parts, [None, "low"], [0, 0]) == [(0, [0, 1], None)]


def test_without_adapters_there_is_one_stretch_and_a_set_of_rows_is_planned_once(parts: tuple) -> None:
    forward, adapters = parts
    assert forward._planned.of(adapters, [None, None], [0, 1]) is WHOLE
    first = forward._planned.of(adapters, [None, "high"], [0, 0])
    assert forward._planned.of(adapters, [None, "high"], [0, 0]) is first


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([0, 1, 2], EVERY), ([0], slice(0, 1, 1)), ([1, 2], slice(1, 3, 1)), ([0, 2], slice(0, 3, 2))],
)
def test_evenly_spaced_rows_are_a_slice(rows: list[int], expected: slice) -> None:
    assert evenly(rows, 3) == expected


def test_other_rows_are_a_tensor() -> None:
    assert evenly([0, 1, 3], 5).tolist() == [0, 1, 3]
