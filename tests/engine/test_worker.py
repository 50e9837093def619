"""The worker: several threads share a batch, stops and closes act at once, a failing step harms only its batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine import worker as worker_module
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.decode import Engine
from uqchat.engine.worker import Worker
from uqchat.errors import BusyError, InputError, ModelError
from uqchat.types import TokenStep


@pytest.fixture
def worker() -> Worker:
    loaded = tiny_model()
    made = Worker(Engine(loaded.model, loaded.tokenizer), max_waiting=4)
    made.engine.vocabulary.end_ids = frozenset()
    yield made
    made.close()
    assert not made._thread.is_alive()


def request(count: int = 20) -> Request:
    return Request((71, 68, 75), GenerationConfig(max_new_tokens=count))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.005)


def test_threads_get_their_own_whole_streams(worker: Worker) -> None:
    results: dict[int, list] = {}

    def consume(i: int) -> None:
        results[i] = list(worker.stream(request(10 + i)))

    threads = [threading.Thread(target=consume, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for i in range(8):
        *steps, end = results[i]
        assert len(steps) == 10 + i and end.reason == "length"
        assert [s.token_id for s in steps] == [s.token_id for s in results[7][: 10 + i]]
    assert worker.num_open == 0


def test_a_stop_flag_ends_the_stream_as_cancelled_within_one_step(worker: Worker) -> None:
    stop = threading.Event()
    stream = worker.stream(request(10_000), stop)
    next(stream)
    stop.set()
    *_, end = stream
    assert isinstance(end, FinishEvent) and end.reason == "cancelled"
    wait_for(lambda: not worker.engine.has_work)
    assert sum(isinstance(e, TokenStep) for e in worker.stream(request(5))) == 5


def test_no_step_runs_after_the_stop_was_seen(worker: Worker) -> None:
    steps = []
    original = worker.engine.step
    worker.engine.step = lambda: (steps.append(time.monotonic()), original())[1]
    stop = threading.Event()
    stream = worker.stream(request(10_000), stop)
    next(stream)
    stop.set()
    stopped = len(steps)
    list(stream)
    assert len(steps) <= stopped + 2  # the one under way, and one that may have begun before the flag


def test_closing_the_stream_frees_the_row(worker: Worker) -> None:
    stream = worker.stream(request(10_000))
    next(stream)
    stream.close()
    wait_for(lambda: not worker.engine.has_work)
    assert worker.num_open == 0


def test_a_failing_step_reports_and_the_next_request_works(worker: Worker) -> None:
    original = worker.engine.forward.decode

    def broken(*args: object) -> torch.Tensor:
        worker.engine.forward.decode = original
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    worker.engine.forward.decode = broken
    with pytest.raises(ModelError, match="Out of memory"):
        list(worker.stream(request()))
    assert len(list(worker.stream(request(5)))) == 6


def test_a_request_that_the_engine_refuses_ends_with_the_reason_and_the_others_go_on(worker: Worker) -> None:
    running = worker.stream(request(200))
    next(running)
    with pytest.raises(InputError, match="no adapter 'x'"):
        next(worker.stream(Request((71, 68), adapter="x")))
    assert sum(isinstance(e, TokenStep) for e in running) == 199
    assert worker.num_open == 0


def test_a_stop_flag_may_be_shared_and_is_left_as_it_was(worker: Worker) -> None:
    stop = threading.Event()
    long = worker.stream(request(200), stop)
    next(long)
    assert len(list(worker.stream(request(3), stop))) == 4
    assert not stop.is_set()
    *_, end = long
    assert end.reason == "length"


def test_waiting_requests_hear_their_place_and_too_many_are_refused(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_ROWS", 1)
    running = worker.stream(request(10_000))
    next(running)
    places: list[int] = []
    waiting = [worker.stream(request(1), on_queue=places.append) for _ in range(4)]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in waiting]
    for thread in threads:
        thread.start()
    wait_for(lambda: worker.num_open == 5 and sorted(places) == [1, 2, 3, 4])
    with pytest.raises(BusyError, match="5 requests"):
        next(worker.stream(request()))
    running.close()
    for thread in threads:
        thread.join(20)
    assert places.count(0) == 4 and worker.num_open == 0


def test_closing_the_worker_ends_open_streams_with_a_reason() -> None:
    loaded = tiny_model()
    worker = Worker(Engine(loaded.model, loaded.tokenizer))
    worker.engine.vocabulary.end_ids = frozenset()
    stream = worker.stream(request(200))
    next(stream)
    worker.close()
    with pytest.raises(ModelError, match="unloaded"):
        list(stream)
    with pytest.raises(ModelError, match="unloaded"):
        next(worker.stream(request()))
