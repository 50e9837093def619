"""Voters that read behind an answer say in the end what voters beside it say, and are in nobody's way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from io import StringIO

import pytest

from tests.tiny import tiny_model
from uqchat import cli_terminal, lagging
from uqchat.cli_chat import TerminalChat
from uqchat.cli_terminal import TokenWriter, printable
from uqchat.config import GenerationConfig
from uqchat.engine import pace, prefix
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.pace import Pace
from uqchat.errors import ModelError
from uqchat.estimators.vote import InstantVote
from uqchat.estimators.vote_options import Reading
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.lagging import split_ensembles
from uqchat.language_model import LanguageModel
from uqchat.types import Answer, Ensemble, ScoredToken, Signals

LONG = GenerationConfig(max_new_tokens=70)
LOCKSTEP, LAGGING = "vote:mode=lockstep", "vote:mode=lagging"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[LanguageModel]:
    monkeypatch.setattr(prefix, "MIN_SHARED", 16)
    monkeypatch.setattr(pace, "SHARE", 10.0)  # a tiny model's steps are so short that hardly a reading would fit in
    made = LanguageModel(tiny_model())
    made.engine.vocabulary.end_ids = frozenset()
    yield made
    made.close()


def seen(model: LanguageModel, name: str, question: str = "hello there") -> tuple[list[ScoredToken], Answer]:
    """Every token as it came, revisions included, and the answer."""
    stream, tokens = model.stream(question, [name, "entropy"], LONG), []
    while True:
        try:
            tokens.append(next(stream))
        except StopIteration as end:
            return tokens, end.value


def values(answer: Answer, name: str) -> list[float]:
    return [token.risks[name].value for token in answer.tokens]


def test_in_the_end_lagging_says_what_lockstep_says(model: LanguageModel) -> None:
    came, behind = seen(model, LAGGING)
    _, beside = seen(model, LOCKSTEP)
    assert [token.token_id for token in behind.tokens] == [token.token_id for token in beside.tokens]
    assert len(behind.tokens) == 70 and max(values(beside, LOCKSTEP)) > 0.005
    assert values(behind, LAGGING) == pytest.approx(values(beside, LOCKSTEP), abs=1e-4)
    assert behind.risks[LAGGING].value == pytest.approx(beside.risks[LOCKSTEP].value, abs=1e-4)
    for index in range(70):  # first without a risk by the voters, then with it
        mine = [LAGGING in token.risks for token in came if token.index == index]
        assert mine == sorted(mine) and not mine[0] and mine[-1]


def test_risks_come_while_the_answer_is_still_being_written(model: LanguageModel) -> None:
    came, _ = seen(model, LAGGING)
    first_judged = next(at for at, token in enumerate(came) if LAGGING in token.risks)
    last_written = max(at for at, token in enumerate(came) if LAGGING not in token.risks)
    assert first_judged < last_written


def test_answers_of_a_batch_lag_where_the_batch_is_full_and_say_the_same(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["hello there", "what is that", "a", "and then?"]
    monkeypatch.setattr(lagging, "NEARLY_FREE", 6)
    mixed = model.answers(questions, ["vote"], LONG)
    monkeypatch.setattr(lagging, "NEARLY_FREE", 1000)
    for answer, alone in zip(mixed, model.answers(questions, ["vote"], LONG), strict=True):
        assert values(answer, "vote") == pytest.approx(values(alone, "vote"), abs=1e-4)


def test_in_a_terminal_the_answer_is_drawn_again_when_its_risks_are_there(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_terminal, "colour_depth", lambda out: 256)
    chat = TerminalChat(model, StringIO(), (LAGGING, "entropy"), LAGGING, LONG)
    chat.handle("hello there")
    again = StringIO()
    writer = TokenWriter(again, LAGGING, 256)
    for token in chat.last.tokens:
        writer.write(token)
    assert "\x1b[" in again.getvalue()
    assert chat.out.getvalue() == printable(chat.last.text) + "\n" + again.getvalue() + "\n"


def test_stopping_an_answer_stops_what_reads_behind_it(model: LanguageModel) -> None:
    stop, count = threading.Event(), 0
    stream = model.stream("hello there", [LAGGING], LONG, stop=stop)
    while True:
        try:
            token = next(stream)
        except StopIteration as end:
            answer = end.value
            break
        count = max(count, token.index + 1)
        if count == 40:
            stop.set()
    assert answer.finish_reason == "cancelled" and len(answer.tokens) < 70
    model.answer("hello there", ["entropy"], LONG)  # a whole answer later nothing is left
    assert not model.engine.has_work and model.running == 0


def test_voters_that_fail_behind_an_answer_cannot_lose_it(model: LanguageModel) -> None:
    stream = model.stream("hello there", [LAGGING, "entropy"], LONG)
    next(stream)
    original = model.engine.forward.prefill
    model.engine.forward.prefill = lambda *args: (_ for _ in ()).throw(ModelError("a voter broke"))
    try:
        while True:
            next(stream)
    except StopIteration as end:
        answer = end.value
    model.engine.forward.prefill = original
    assert len(answer.tokens) == 70 and "a voter broke" in answer.failures[LAGGING]
    assert answer.risks["entropy"].value > 0 and LAGGING not in answer.risks


def test_a_voter_behind_an_answer_whose_logits_are_no_numbers_cannot_lose_it(model: LanguageModel) -> None:
    name, adapter = list(model.estimator(LAGGING).adapters.items())[1]
    for delta in adapter.deltas.values():
        delta.a.fill_(float("nan"))
    _, answer = seen(model, LAGGING)
    assert len(answer.tokens) == 70 and f"Voter 2 of 3 ({name}) gave logits" in answer.failures[LAGGING]
    assert answer.risks["entropy"].value > 0 and LAGGING not in answer.risks
    with pytest.raises(ModelError, match="Voter 2 of 3"):
        seen(model, LOCKSTEP)


# ---- when


def made(mode: str, count: int = 3, prediction: str = "base") -> InstantVote:
    return InstantVote(VoteSettings(n_voters=count, prediction=prediction), Reading(mode=mode))


def behind(one: InstantVote, num_rows: int, count: int = 20) -> tuple[Ensemble, ...]:
    request = Request((1,), GenerationConfig(max_new_tokens=count), signals=one.needs)
    left, found = split_ensembles(request, [one], num_rows)
    assert {*left.signals.ensembles, *found} == set(one.needs.ensembles)
    return found


@pytest.mark.parametrize(
    ("one", "num_rows", "expected"),
    [
        (made("auto"), 0, False),
        (made("auto"), 6, False),  # 6 + 1 + 3 rows are 10
        (made("auto"), 7, True),
        (made("auto", 10), 0, True),
        (made("lockstep", 10), 12, False),
        (made("lagging"), 0, True),
        (made("lagging", 3, "mean"), 12, False),  # the voters decide what is written
    ],
)
def test_voters_read_behind_where_the_batch_is_full(one: InstantVote, num_rows: int, expected: bool) -> None:
    assert bool(behind(one, num_rows)) == expected


def test_nothing_reads_behind_a_given_answer_or_where_somebody_needs_the_votes_at_once() -> None:
    assert not behind(made("lagging"), 0, count=0)
    both = [made("lagging"), made("lockstep")]
    request = Request((1,), signals=both[0].needs | both[1].needs)
    assert split_ensembles(request, both, 0)[1] == ()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_readings_behind_take_their_share_of_the_writing_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 1 s and readings 1.5 s: the first is free, the next wait until 6 % of the writing covers them."""
    clock, counts = Clock(), []
    monkeypatch.setattr(pace, "time", clock)

    class Ahead:
        request = Request((1,), is_behind=True)

    one = Pace()
    for step in range(1, 101):
        with one.writing([Ahead()]):
            clock.now += 1
        with one.reading([Ahead()], is_writing=True) as allowed:
            if allowed:
                clock.now += 1.5
                counts.append(step)
    assert counts == [1, 50, 75, 100]
    with one.writing([]):
        pass
    with one.reading([Ahead()], is_writing=False) as allowed:
        assert allowed


def test_a_reading_behind_makes_way_for_a_prompt(model: LanguageModel) -> None:
    engine, ids = model.engine, tuple(range(5, 60))
    signals = Signals(ensembles=(Ensemble(("v",)),))
    from tests.random_adapters import low_rank

    engine.adapters.add(low_rank(engine.model, "v", 2, ("q_proj",)))
    nothing = GenerationConfig(max_new_tokens=0)
    late = engine.add(Request(ids, nothing, ids[:9], signals, adapter="v", is_behind=True))
    soon = engine.add(Request(ids[:40], GenerationConfig(max_new_tokens=1)))
    order = []
    while engine.has_work:
        order += [event.key for event in engine.step() if isinstance(event, StepEvent | FinishEvent)]
    assert order.index(soon) < order.index(late)
