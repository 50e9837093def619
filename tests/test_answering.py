"""Follow-ups: what an estimator reads when the answer is whole, and that none of them can lose the answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine.adapters import Adapter, LowRank
from uqchat.errors import ModelError
from uqchat.estimators import get_estimators
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp
from uqchat.language_model import LanguageModel, drain
from uqchat.types import Risk, ScoredToken, Signals, TokenStep

SHORT = GenerationConfig(max_new_tokens=6)
WATCHED = (65, 66)


@dataclass
class Asked:
    """What one answer's follow-ups were told."""

    replies: list[TokenStep] = field(default_factory=list)


class Asking(Estimator):
    """Reads the whole conversation again, twice, and gives every token the log-probability of the letter A after it."""

    name, label, level, unit, value_map = "asking", "Asking", "answer", "nats", "exp"
    needs = Signals()
    adapter: str | None = None
    extra = 0

    def new_state(self) -> Asked:
        """Nothing asked."""
        return Asked()

    def score_token(self, step: TokenStep | ScoredToken, state: Asked) -> dict[int, Risk]:
        """Nothing yet."""
        return {}

    def follow_ups(self, context: AnswerContext, tokens: Sequence[ScoredToken], state: Asked) -> list[FollowUp]:
        ids = (*context.prompt_ids, *(t.token_id for t in tokens), *([1] * self.extra))
        return [FollowUp(ids, self.adapter, Signals(watched_ids=WATCHED)), FollowUp(ids[:-1], None, Signals(top_n=2))]

    def take_replies(self, replies: list[TokenStep], state: Asked) -> dict[int, Risk]:
        state.replies = replies
        raw = -float(replies[0].signals.watched[0])
        return {0: Risk(0.5, raw)}

    def score_answer(self, tokens: Sequence[ScoredToken], state: Asked) -> None:
        """The mean over tokens: that of the first, once there are replies."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


def use(model: LanguageModel, monkeypatch: pytest.MonkeyPatch, estimator: Estimator) -> None:
    known = {"asking": estimator, "entropy": get_estimators("entropy")[0]}
    monkeypatch.setattr(model, "estimator", known.__getitem__)


def log_prob_after(model: LanguageModel, ids: Sequence[int]) -> float:
    """Of the first watched id, by transformers alone."""
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, -1]
    return logits.log_softmax(-1)[WATCHED[0]].item()


def test_replies_come_after_the_answer_and_revise_it(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    use(model, monkeypatch, Asking())
    stream = model.stream("hello", ("entropy", "asking"), SHORT)
    seen = [next(stream) for _ in range(7)]
    assert [t.index for t in seen] == [0, 1, 2, 3, 4, 5, 0] and "asking" in seen[-1].risks
    answer = drain(stream)
    prompt = model.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    ids = [*prompt["input_ids"], *(t.token_id for t in answer.tokens)]
    assert answer.risks["asking"].raw == pytest.approx(-log_prob_after(model, ids), abs=1e-4)
    assert list(answer.risks) == ["entropy", "asking"] and answer.failures == {} and model.running == 0
    assert answer.timings.total >= answer.timings.first_token > 0


def test_a_batch_gives_every_answer_what_it_gets_alone(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    use(model, monkeypatch, Asking())
    prompts = ["a", "hello", "how are you?", "x" * 40, "hello"]
    together = model.answers(prompts, ("asking", "entropy"), SHORT)
    alone = [model.answer(prompt, ("asking", "entropy"), SHORT) for prompt in prompts]
    assert [a.text for a in together] == [a.text for a in alone]
    for name in ("asking", "entropy"):
        expected = [a.risks[name].raw for a in alone]
        assert [a.risks[name].raw for a in together] == pytest.approx(expected, abs=1e-4)
    scored = model.scores(prompts[:2], [[t.token_id for t in a.tokens] for a in alone[:2]], "asking")
    assert [a.risks["asking"].raw for a in scored] == pytest.approx(
        [a.risks["asking"].raw for a in alone[:2]], abs=1e-4
    )
    assert model.running == 0


def test_a_follow_up_reads_through_its_adapter(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = "model.layers.1.mlp.down_proj"
    weight = model.model.get_submodule(layer).weight
    delta = LowRank(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2))
    estimator = Asking()
    estimator.adapter, estimator.adapters = "mine", {"mine": Adapter("mine", {layer: delta})}
    use(model, monkeypatch, estimator)
    answer = model.answer("hello", ("asking",), SHORT)
    plain = [t.token_id for t in model.answer("hello", ("entropy",), SHORT).tokens]
    assert [t.token_id for t in answer.tokens] == plain, "the answer itself is written without it"
    prompt = model.tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True)
    before = log_prob_after(model, [*prompt["input_ids"], *plain])
    weight.data += delta.b @ delta.a
    expected = log_prob_after(model, [*prompt["input_ids"], *plain])
    assert answer.risks["asking"].raw == pytest.approx(-expected, abs=1e-3) and abs(before - expected) > 0.01


@pytest.mark.parametrize("is_batch", [False, True], ids=["stream", "batch"])
def test_a_failing_follow_up_leaves_the_answer(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, is_batch: bool
) -> None:
    estimator = Asking()
    estimator.extra = 300  # beyond the context window
    use(model, monkeypatch, estimator)
    ask = (lambda: model.answers(["hello"], ("asking", "entropy"), SHORT)[0]) if is_batch else None
    answer = ask() if ask else model.answer("hello", ("asking", "entropy"), SHORT)
    assert len(answer.tokens) == 6 and list(answer.risks) == ["entropy"]
    assert "Asking gave no score: it reads 3" in answer.failures["asking"] and model.running == 0


def test_a_model_that_fails_in_the_follow_up_leaves_the_answer(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(model, monkeypatch, Asking())
    submit = type(model._get_worker()).submit

    def refuse(self: object, request: object, stop: object = None) -> object:
        if request.generation.max_new_tokens == 1:
            raise ModelError("no more today")
        return submit(self, request, stop)

    monkeypatch.setattr(type(model._get_worker()), "submit", refuse)
    answer = model.answer("hello", ("asking", "entropy"), SHORT)
    assert len(answer.tokens) == 6 and "no more today" in answer.failures["asking"]


def test_a_stop_before_the_follow_ups_skips_them_and_one_within_leaves_the_answer(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(model, monkeypatch, Asking())
    stop = threading.Event()
    stream = model.stream("hello", ("asking", "entropy"), GenerationConfig(max_new_tokens=100), stop=stop)
    next(stream)
    stop.set()
    answer = drain(stream)
    assert answer.finish_reason == "cancelled" and answer.failures == {} and list(answer.risks) == ["entropy"]
    stop = threading.Event()
    follow_ups = Asking.follow_ups

    def stopping(self: Asking, *args: object) -> list[FollowUp]:
        stop.set()
        return follow_ups(self, *args)

    monkeypatch.setattr(Asking, "follow_ups", stopping)
    answer = drain(model.stream("hello", ("asking", "entropy"), SHORT, stop=stop))
    assert answer.finish_reason in ("length", "stop") and len(answer.tokens) == 6
    assert "stopped" in answer.failures["asking"] and model.running == 0


def test_closing_the_stream_within_the_follow_ups_frees_them(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(model, monkeypatch, Asking())
    stream = model.stream("hello", ("asking",), SHORT)
    while "asking" not in next(stream).risks:
        pass
    stream.close()
    assert model.running == 0


def test_a_large_batch_with_many_readings_each_stays_within_the_workers_queue(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 answers of 40 readings each are 1,600 in all; 1,040 requests may be open at once."""

    class Many(Asking):
        def follow_ups(self, context: AnswerContext, tokens: Sequence[ScoredToken], state: Asked) -> list[FollowUp]:
            return super().follow_ups(context, tokens, state)[:1] * 40

    use(model, monkeypatch, Many())
    most = []
    submit = type(model._get_worker()).submit

    def counting(self: object, *args: object) -> object:
        job = submit(self, *args)
        most.append(self.num_open)
        return job

    monkeypatch.setattr(type(model._get_worker()), "submit", counting)
    answers = model.answers(["a"] * 40, "asking", GenerationConfig(max_new_tokens=1))
    assert all(answer.failures == {} and "asking" in answer.risks for answer in answers) and len(most) == 40 * 41
    assert max(most) < 300
