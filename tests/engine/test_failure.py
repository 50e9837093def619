"""A forward that fails ends the rows it must and no others; what only saves time is left out where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.test_decode import generated, greedy, ids_of, make_engine
from uqchat.engine import decode
from uqchat.engine.backend import FinishEvent, StepEvent
from uqchat.engine.decode import Engine
from uqchat.errors import ModelError

pytestmark = pytest.mark.usefixtures("both_forwards")

OUT_OF_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
SHORT, LONG = "hello", "a longer prompt, which is read later on and has more to say"


def break_once(engine: Engine, name: str, error: Exception, when: Callable[..., bool] = lambda *args: True) -> None:
    """The next call of this method of the forward for which `when` holds raises."""
    original = getattr(engine.forward, name)

    def broken(*args: Any) -> Any:
        if not when(*args):
            return original(*args)
        setattr(engine.forward, name, original)
        raise error

    setattr(engine.forward, name, broken)


def run(engine: Engine, keys: list[int]) -> tuple[dict[int, list[int]], dict[int, FinishEvent]]:
    """Ids and ends of all rows."""
    ids: dict[int, list[int]] = {key: [] for key in keys}
    ends: dict[int, FinishEvent] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, StepEvent):
                ids[event.key].append(event.step.token_id)
            else:
                assert event.key not in ends
                ends[event.key] = event
    assert sorted(ends) == sorted(keys) and not engine._rows
    return ids, ends


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_a_prompt_that_cannot_be_read_leaves_running_rows_whole(kind: str) -> None:
    engine = make_engine(kind)
    running = engine.add(greedy(ids_of(engine, SHORT), 12))
    first = [e.step.token_id for e in engine.step()]
    reading = engine.add(greedy(ids_of(engine, LONG), 12))
    break_once(engine, "prefill", ValueError("a broken layer"))
    ids, ends = run(engine, [running, reading])
    assert first + ids[running] == generated(engine, ids_of(engine, SHORT), 12) and ends[running].error is None
    assert ids[reading] == [] and isinstance(ends[reading].error, ModelError)
    assert "ValueError: a broken layer" in str(ends[reading].error)


def test_out_of_memory_first_costs_the_saved_conversations_and_nobody_an_answer() -> None:
    engine = make_engine()
    run(engine, [engine.add(greedy(ids_of(engine, LONG), 4))])
    assert len(engine.lineup.prefixes) == 1
    keys = [engine.add(greedy(ids_of(engine, text), 12)) for text in (SHORT, "other")]
    break_once(engine, "decode", torch.OutOfMemoryError("CUDA out of memory"))
    ids, ends = run(engine, keys)
    assert [ends[key].reason for key in keys] == ["length", "length"]
    assert ids[keys[0]] == generated(engine, ids_of(engine, SHORT), 12)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_while_decoding_ends_the_longest_row_only(error: Exception) -> None:
    engine = make_engine()
    keys = [engine.add(greedy(ids_of(engine, text), 12)) for text in (SHORT, LONG, "other")]
    break_once(engine, "decode", error, lambda lengths, *rest: len(lengths) == 3)
    ids, ends = run(engine, keys)
    assert "Out of memory" in str(ends[keys[1]].error)
    for key, text in ((keys[0], SHORT), (keys[2], "other")):
        assert ends[key].reason == "length" and ids[key] == generated(engine, ids_of(engine, text), 12)


def test_a_recurrent_model_that_fails_in_the_middle_of_a_step_ends_all_rows_of_it_and_reads_on() -> None:
    """The rows before the failing one have taken the step already, and a recurrent state cannot go back."""
    engine = make_engine("mamba")
    keys = [engine.add(greedy(ids_of(engine, text), 12)) for text in (SHORT, "other")]
    for _ in range(3):
        engine.step()
    late = engine.add(greedy(ids_of(engine, LONG), 6))
    break_once(engine, "_run", OUT_OF_MEMORY, lambda place, *rest: place == 1)
    ids, ends = run(engine, [*keys, late])
    assert all(ends[key].reason == "error" for key in keys)
    assert ids[late] == generated(engine, ids_of(engine, LONG), 6)


def test_a_step_that_fails_after_its_forward_ends_its_rows_and_those_being_read_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    monkeypatch.setattr(decode, "PREFILL_CHUNK", 8)
    running = engine.add(greedy(ids_of(engine, SHORT), 12))
    engine.step()
    reading = engine.add(greedy(ids_of(engine, LONG), 6))
    original = decode.score_logits

    def broken(*args: Any) -> None:
        monkeypatch.setattr(decode, "score_logits", original)
        raise RuntimeError("scores")

    monkeypatch.setattr(decode, "score_logits", broken)
    ids, ends = run(engine, [running, reading])
    assert ends[running].reason == "error" and ids[reading] == generated(engine, ids_of(engine, LONG), 6)


def test_a_failure_when_a_prompt_shared_by_several_has_been_read_ends_them_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()
    running = engine.add(greedy(ids_of(engine, SHORT), 12))
    first = [e.step.token_id for e in engine.step()]
    twins = [engine.add(greedy(ids_of(engine, LONG), count)) for count in (6, 1, 6)]
    original = decode.score_logits

    def broken(logits: torch.Tensor, *rest: Any) -> Any:
        if len(logits) != 3:
            return original(logits, *rest)
        raise RuntimeError("scores")

    monkeypatch.setattr(decode, "score_logits", broken)
    ids, ends = run(engine, [running, *twins])
    assert all(ends[key].reason == "error" for key in twins)
    assert first + ids[running] == generated(engine, ids_of(engine, SHORT), 12)


def test_saving_and_loading_prefixes_is_left_out_where_memory_is_short() -> None:
    engine = make_engine()
    expected = generated(engine, ids_of(engine, LONG), 12)
    break_once(engine, "save", OUT_OF_MEMORY)
    for loads in range(3):
        if loads == 2:
            break_once(engine, "load", OUT_OF_MEMORY)
        key = engine.add(greedy(ids_of(engine, LONG), 12))
        ids, ends = run(engine, [key])
        assert ids[key] == expected and ends[key].reason == "length"


def test_the_plain_generator_raises_and_leaves_no_row() -> None:
    engine = make_engine()
    break_once(engine, "decode", RuntimeError("broken"))
    with pytest.raises(ModelError, match="broken"):
        list(engine.stream([greedy(ids_of(engine, SHORT)), greedy(ids_of(engine, LONG))]))
    assert not engine.has_work and not engine._rows
