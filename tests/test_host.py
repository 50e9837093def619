"""The shared model: one job at a time, answers first, the old model stays when the new one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.doubles import ScriptedLanguageModel, offer, wait_until
from uqchat.config import AppConfig
from uqchat.errors import BusyError, ModelCancelledError, ModelError
from uqchat.host import HostStatus, ModelHost
from uqchat.host_estimators import offers_of
from uqchat.loading import LoadProgress


class Loader:
    """A `load` that makes scripted models, waits at a gate when asked to, and fails for names that begin with bad."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.closed: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.script: dict[str, Any] = {}

    def __call__(self, name: str, **options: Any) -> ScriptedLanguageModel:
        self.calls.append((name, options))
        options["on_progress"](LoadProgress("download", f"Downloading {name}", 5, 10))
        while not self.gate.wait(0.005):
            if options["cancel"].is_set():
                raise ModelCancelledError("Loading the model was cancelled.")
        if name.startswith("bad"):
            raise ModelError(f"There is no model {name}.")
        if name.startswith("bug"):
            raise ValueError("a bug")
        model = ScriptedLanguageModel("one two three", name=name, **self.script)
        model.info = SimpleNamespace(dtype="bfloat16", device="cpu", quantization=None, context_window=8192, notes=())
        model.close = lambda: self.closed.append(name)
        return model


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def make_host(loader: Loader) -> Iterator[Callable[..., ModelHost]]:
    hosts: list[ModelHost] = []

    def make(**settings: Any) -> ModelHost:
        hosts.append(ModelHost(AppConfig(**{"model": "first", "allow_model_switch": True, **settings}), loader))
        return hosts[-1]

    yield make
    loader.gate.set()
    for host in hosts:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., ModelHost]) -> ModelHost:
    host = make_host()
    host.start()
    wait_until(lambda: host.status().state == "ready")
    return host


def settled(host: ModelHost) -> bool:
    return host.status().state not in ("loading", "switching")


def test_start_returns_at_once_and_shows_progress(make_host: Callable[..., ModelHost], loader: Loader) -> None:
    loader.gate.clear()
    host = make_host()
    host.start()
    wait_until(lambda: host.status().done == 5)
    status = host.status()
    assert (status.state, status.total, status.message) == ("loading", 10, "Downloading first.")
    with pytest.raises(BusyError, match="Downloading first"):
        host.stream("hello")
    loader.gate.set()
    wait_until(lambda: host.status().state == "ready")
    assert host.status().model == "first"
    assert host.status().details == "bfloat16 on cpu, 8,192 tokens"


def test_answers_stream_through_and_end_with_the_answer(host: ModelHost) -> None:
    stream = host.stream("hello", ("entropy", "margin"))
    texts = []
    while True:
        try:
            texts.append(next(stream).text)
        except StopIteration as end:
            assert end.value.text == "".join(texts) == "one two three"
            assert list(end.value.risks) == ["entropy", "margin"]
            return


def test_a_text_is_scored_through_the_host_and_counts_as_a_running_answer(
    make_host: Callable[..., ModelHost], loader: Loader
) -> None:
    loader.script = {"hold_after": 1}
    host = make_host(max_queue=1)
    with pytest.raises(BusyError, match="No model is loaded"):
        host.score("hello", "four five")
    host.start()
    wait_until(lambda: host.status().state == "ready")
    stop, found = threading.Event(), []

    def score() -> None:
        found.append(host.score("hello", "four five", ("margin",), stop=stop))

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: host._slot.num_answers == 2)
    with pytest.raises(BusyError, match="1 request is waiting"):
        host.score("hello", "six")
    host.switch("second")
    wait_until(lambda: "Waiting for 2 answers" in host.status().message)
    with pytest.raises(BusyError, match="Waiting for 2 answers"):
        host.score("hello", "six")
    stop.set()
    for thread in threads:
        thread.join(10)
    wait_until(lambda: host.status().model == "second" and settled(host))
    assert [answer.finish_reason for answer in found] == ["cancelled", "cancelled"]


def test_a_model_that_fails_leaves_the_old_one(host: ModelHost, loader: Loader) -> None:
    host.switch("bad/model")
    wait_until(lambda: settled(host))
    status = host.status()
    assert (status.state, status.model) == ("ready", "first")
    assert status.error == "There is no model bad/model."
    assert "bad/model could not be loaded. first is ready." == status.message
    assert len(list(host.stream("hello"))) == 4
    assert loader.closed == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_while_loading_does_not_lock_the_host(host: ModelHost) -> None:
    host.switch("bug")
    wait_until(lambda: settled(host))
    assert host.status().state == "ready" and "ValueError" in host.status().error
    host.switch("second")
    wait_until(lambda: host.status().model == "second")


def test_a_switch_replaces_and_frees_the_old_model(host: ModelHost, loader: Loader) -> None:
    host.switch(" second ", dtype="float32", quantization="int8")
    wait_until(lambda: host.status().model == "second" and settled(host))
    assert loader.closed == ["first"]
    name, options = loader.calls[-1]
    assert (name, options["dtype"], options["quantization"]) == ("second", "float32", "int8")
    assert host.status().error is None


def test_a_switch_waits_for_running_answers_and_refuses_new_ones(host: ModelHost, loader: Loader) -> None:
    stream = host.stream("hello")
    next(stream)
    host.switch("second")
    wait_until(lambda: "Waiting for 1 answer" in host.status().message)
    assert host.status().state == "switching" and host.status().model == "first"
    with pytest.raises(BusyError, match="Waiting for 1 answer to finish before second is loaded"):
        host.stream("me too")
    assert len(loader.calls) == 1
    assert len(list(stream)) == 3
    wait_until(lambda: host.status().model == "second")


def test_an_answer_asked_for_but_begun_after_a_switch_is_refused(host: ModelHost, loader: Loader) -> None:
    loader.gate.clear()
    late = host.stream("hello")
    host.switch("second")
    with pytest.raises(BusyError):
        next(late)


def test_closing_a_stream_lets_the_switch_go_on(host: ModelHost) -> None:
    stream = host.stream("hello")
    next(stream)
    host.switch("second")
    stream.close()
    wait_until(lambda: host.status().model == "second")


def test_only_one_job_at_a_time(host: ModelHost, loader: Loader) -> None:
    loader.gate.clear()
    host.switch("second")
    for another in (lambda: host.switch("third"), host.unload, host.start):
        with pytest.raises(BusyError):
            another()


@pytest.mark.parametrize("is_answering", [True, False])
def test_a_cancelled_switch_keeps_the_old_model(host: ModelHost, loader: Loader, is_answering: bool) -> None:
    stream = host.stream("hello")
    if is_answering:
        next(stream)
    loader.gate.clear()
    host.switch("second")
    host.cancel_switch()
    wait_until(lambda: settled(host))
    status = host.status()
    assert (status.state, status.model, status.error) == ("ready", "first", None)
    assert status.message == "Loading second was cancelled. first is ready."
    assert len(list(stream)) == (3 if is_answering else 4)


def test_a_cancel_is_told_at_once_although_the_step_under_way_goes_on(host: ModelHost) -> None:
    begun, step_ended = threading.Event(), threading.Event()

    def load(name: str, **options: Any) -> ScriptedLanguageModel:
        begun.set()
        step_ended.wait(10)
        raise ModelCancelledError("Cancelled.")

    host._load = load
    host.switch("second")
    begun.wait(10)
    host.cancel_switch()
    assert host.status().message.startswith("Cancelling")
    step_ended.set()
    wait_until(lambda: settled(host))


def test_cancelling_when_nothing_is_under_way_harms_no_later_switch(host: ModelHost) -> None:
    host.cancel_switch()
    host.switch("second")
    wait_until(lambda: host.status().model == "second")


def test_a_first_model_that_fails_leaves_a_host_that_can_load_another(make_host: Callable[..., ModelHost]) -> None:
    host = make_host(model="bad")
    host.start()
    wait_until(lambda: host.status().state == "failed")
    assert host.status().error == "There is no model bad." and host.status().model is None
    with pytest.raises(BusyError, match="could not be loaded"):
        host.stream("hello")
    host.switch("second")
    wait_until(lambda: host.status().state == "ready")


def test_unload_frees_the_model(host: ModelHost, loader: Loader) -> None:
    host.unload()
    wait_until(lambda: host.status().state == "empty")
    assert loader.closed == ["first"] and host.status().model is None
    with pytest.raises(BusyError, match="No model is loaded"):
        host.stream("hello")


def test_switching_can_be_turned_off(make_host: Callable[..., ModelHost]) -> None:
    host = make_host(allow_model_switch=False)
    host.start()
    wait_until(lambda: host.status().state == "ready")
    for change in (lambda: host.switch("second"), host.unload):
        with pytest.raises(ModelError, match="UQCHAT_ALLOW_MODEL_SWITCH"):
            change()


def test_an_empty_name_is_refused(host: ModelHost) -> None:
    with pytest.raises(ModelError, match="No model was named"):
        host.switch("  ")


def test_requests_beyond_the_queue_are_refused(make_host: Callable[..., ModelHost]) -> None:
    host = make_host(max_queue=1)
    host.start()
    wait_until(lambda: host.status().state == "ready")
    streams = [host.stream("hello") for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(BusyError, match="1 requests? (is|are) waiting"):
        host.stream("hello")
    streams[0].close()
    assert len(list(host.stream("hello"))) == 4


def test_the_token_is_kept_nowhere(host: ModelHost, loader: Loader) -> None:
    host.switch("bad", token="hf_secret")
    wait_until(lambda: settled(host))
    assert loader.calls[-1][1]["token"] == "hf_secret"
    assert "hf_secret" not in repr(host.status()) + repr(vars(host))


def test_the_number_of_threads_is_set(make_host: Callable[..., ModelHost], monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    host = make_host(threads=1)
    host.start()
    wait_until(lambda: host.status().state == "ready", timeout=30)
    assert counts == [1]


def test_close_stops_a_load_and_frees_the_model(host: ModelHost, loader: Loader) -> None:
    loader.gate.clear()
    host.switch("second")
    host.close()
    assert host.status().state == "empty"
    assert loader.closed == ["first"]


def test_an_estimator_is_added_in_the_background_tried_with_every_model_and_removed(host: ModelHost) -> None:
    host.add_estimator(" shelf/head ")
    wait_until(lambda: host.status().adding is None)
    added = host.status().offers[-1]
    assert (added.name, added.is_added, added.refusal, added.card) == ("shelf/head", True, None, "# A head")
    assert host.status().estimators[-1] == "shelf/head"
    host.switch("second")
    wait_until(lambda: host.status().model == "second" and settled(host))
    assert host.status().offers[-1] == added
    host.remove_estimator("entropy")  # not one that was added
    host.remove_estimator("shelf/head")
    assert "shelf/head" not in host.status().estimators and "entropy" in host.status().estimators


@pytest.mark.parametrize(("name", "reason"), [("shelf/other", "960 features; this model gives 576"), ("x", "Unknown")])
def test_an_estimator_that_does_not_fit_is_explained_and_not_listed(host: ModelHost, name: str, reason: str) -> None:
    host.add_estimator(name)
    wait_until(lambda: host.status().adding is None)
    assert reason in (host.status().adding_error or "")
    assert name not in [offer.name for offer in host.status().offers]


def test_estimators_are_added_only_where_models_may_be_changed_and_while_one_is_ready(
    make_host: Callable[..., ModelHost],
) -> None:
    with pytest.raises(ModelError, match="Adding an estimator is turned off"):
        make_host(allow_model_switch=False).add_estimator("shelf/head")
    empty = make_host()
    with pytest.raises(BusyError, match="when a model is ready"):
        empty.add_estimator("shelf/head")
    with pytest.raises(ModelError, match="No estimator was named"):
        empty.add_estimator("  ")


def test_what_reads_on_after_the_answer_runs_only_where_it_is_wanted() -> None:
    offers = (offer("entropy"), offer("query", is_costly=True), offer("probe", refusal="too deep"))
    status = HostStatus("ready", "m", "Ready.", offers=offers)
    assert status.estimators == ("entropy",)
    assert status.estimators_with(["query", "probe", "gone"]) == ("entropy", "query")


def test_what_has_follow_ups_says_that_it_reads_on_and_is_listed_as_costly() -> None:
    from uqchat.artifacts import EstimatorChoice
    from uqchat.estimators import ESTIMATORS, TRAINED, Estimator

    class Model:
        available = [EstimatorChoice(one.name, one.label, one.level, one.unit, one.value_map) for one in ESTIMATORS]

        def estimator(self, name: str) -> Any:
            return next(kind for kind in ESTIMATORS if kind.name == name)()

    asking = {kind.name for kind in (*ESTIMATORS, *TRAINED) if kind.follow_ups is not Estimator.follow_ups}
    saying = {kind.name for kind in (*ESTIMATORS, *TRAINED) if kind.reads_on}
    assert saying == asking - {"combination"}  # which asks for its members, and says so when it knows them
    saying |= {kind.name for kind in ESTIMATORS if kind.cost}
    assert {one.name for one in offers_of(Model()) if one.is_costly} == saying & {kind.name for kind in ESTIMATORS}
