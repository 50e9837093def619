"""What a finished query says of stored answers, read by the engine as in the chat. Trains and fits nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from trainers.answers import AnswerRow
from trainers.query_inputs import make_example
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.estimators.query import ZeroShotQuery
from uqchat.models import LoadedModel
from uqchat.types import Signals

WINDOW = 128  # requests with the engine at a time


def query_scores(
    model: LoadedModel,
    estimator: ZeroShotQuery,
    rows: Sequence[AnswerRow],
    report: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Raw score of every answer, log odds over the temperature, in the rows' order.

    Args:
        estimator: trained, or the untrained variant. rows: answers of this model, none without a word.
        report: told how many are done.

    Raises:
        UqchatError: the model fails, or its tokenizer has no tokens for the replies.
    """
    engine = Engine(model.model, model.tokenizer)
    for adapter in estimator.adapters.values():
        engine.adapters.add(adapter)
    query = estimator.query_for(model.tokenizer)
    name = estimator.adapter.name if estimator.adapter else None
    signals, one = Signals(watched_ids=query.label_ids), GenerationConfig(max_new_tokens=1)
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].answer_ids))
    done = 0
    for part in _parts(order, WINDOW):
        requests = [Request(make_example(rows[i], model, query).ids, one, (), signals, adapter=name) for i in part]
        for event in engine.stream(requests):
            if isinstance(event, StepEvent) and event.step.index == 0:
                no, yes = event.step.signals.watched.tolist()
                found[part[event.key]] = (no - yes) / estimator.temperature
        done += len(part)
        report(done)
    return found


def _parts(order: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield list(order[start : start + size])
