"""Estimators over the answers in a feature cache by asking the model once more, where its signals do not suffice.

Voters, masks and prompt signals are in no cache: such answers are read by teacher forcing, by the engine, as a given
text is. The results are those of `replay` where that can give any. Follow-ups (a query) are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice

from trainers.answers import AnswerRow
from trainers.cache import FeatureCache
from trainers.replay import Scored, replay, signals_of
from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.engine.prompt import build_prompt
from uqchat.errors import InputError
from uqchat.estimators.base import AnswerContext, Estimator
from uqchat.models import LoadedModel
from uqchat.scoring import Scorer, signals_for
from uqchat.types import Signals, as_messages

PART = 16  # answers that the engine has at a time
FORCED = GenerationConfig(max_new_tokens=0)
Read = Callable[[FeatureCache, Sequence[Estimator], Collection[str]], Iterator[Scored]]


class Asker:
    """An engine that reads stored answers for estimators. Loads nothing until it is asked."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    def ask(self, rows: Sequence[AnswerRow], estimators: Sequence[Estimator]) -> Iterator[Scored]:
        """Answers of this model with at least one token, read together, in their order.

        Raises:
            InputError: a signal that this model does not give, an answer that does not fit, an estimator that asks on.
            UqchatError: the model fails.
        """
        asking = [one.label for one in estimators if one.reads_on]
        if asking:
            raise InputError(f"{asking[0]} asks on when an answer is whole; `query-calibrate` is for it.")
        for one in estimators:
            for name, adapter in one.adapters.items():
                if name not in self.engine.adapters:
                    self.engine.adapters.add(adapter)
        signals = signals_for(estimators, self.engine.signals)
        requests = [self.request(row, signals) for row in rows]
        scorers = [Scorer(estimators, self._context(r, row)) for r, row in zip(requests, rows, strict=True)]
        for event in self.engine.stream(requests):
            if isinstance(event, StepEvent):
                scorers[event.key].push(event.step)
            elif isinstance(event, FinishEvent) and event.error is not None:
                raise event.error
        for row, scorer in zip(rows, scorers, strict=True):
            scorer.finish()
            yield Scored(row, scorer.answer_scores()[0], tuple(scorer.tokens))

    @cached_property
    def engine(self) -> Engine:
        """Made when first asked for."""
        return Engine(self.model.model, self.model.tokenizer)

    def request(self, row: AnswerRow, signals: Signals) -> Request:
        """The prompt and the answer, to be read. Raises InputError where they do not fit the context window."""
        if row.prompt_ids:
            return Request(row.prompt_ids, FORCED, row.answer_ids, signals)
        window, count = self.model.context_window, len(row.answer_ids)
        prompt = build_prompt(as_messages(row.messages), self.model.tokenizer, window, count, (), count)
        return Request(prompt.ids, FORCED, row.answer_ids, signals)

    def _context(self, request: Request, row: AnswerRow) -> AnswerContext:
        return AnswerContext(request.prompt_ids, tuple(as_messages(row.messages)), FORCED, self.model.tokenizer)


def reader(model: LoadedModel, limit: int = 0) -> Read:
    """Replays where a cache holds all that is needed, else asks the model.

    Args:
        limit: the first so many answers of each cache, 0 is all of them; also of those that are replayed.
    """
    asker = Asker(model)

    def asked(cache: FeatureCache, estimators: Sequence[Estimator], splits: Collection[str]) -> Iterator[Scored]:
        rows = [row for row in cache.answers if row.answer_ids and (not splits or row.split in splits)]
        for start in range(0, len(rows), PART):
            yield from asker.ask(rows[start : start + PART], estimators)

    def read(cache: FeatureCache, estimators: Sequence[Estimator], splits: Collection[str] = ()) -> Iterator[Scored]:
        is_there = all(can_replay(cache, one) for one in estimators)
        return islice((replay if is_there else asked)(cache, estimators, splits), limit or None)

    return read


def can_replay(cache: FeatureCache, one: Estimator) -> bool:
    """Whether the cache holds everything that the estimator reads."""
    needs = one.needs
    if one.reads_on or one.adapters or needs.prompt_attention or needs.prompt_rows or needs.watched_ids:
        return False
    try:
        signals_for([one], signals_of(cache))
    except InputError:
        return False
    return True
