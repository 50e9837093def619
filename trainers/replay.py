"""Estimators over answers in a feature cache: the same code that scores a chat, without running the language model.

What an estimator asks of the model beyond the cached signals (a query's follow-ups) cannot be replayed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainers.answers import AnswerRow
from trainers.cache import FeatureCache
from uqchat.artifacts import Shelf
from uqchat.errors import InputError
from uqchat.estimators.base import AnswerContext, Estimator
from uqchat.models import LoadedModel
from uqchat.scoring import Scorer, signals_for
from uqchat.types import Alternative, Risk, ScoredToken, Signals, StepSignals, Summary, TokenStep, as_messages


class Opened:
    """A loaded model as estimators see it when they are opened: its facts, and no engine."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.info, self.name, self.model, self.tokenizer = loaded, loaded.name, loaded.model, loaded.tokenizer
        self.shelf = Shelf(self)

    def estimator(self, name: str) -> Estimator:
        """By name, folder or Hub id, opened once. Raises UqchatError where there is no such estimator."""
        return self.shelf.get(name)

    def uncalibrated(self, name: str) -> Estimator:
        """A fresh one whose values are not calibrated, so that no scope asks for signals. Raises as `estimator`.

        Args:
            name: also `label=name`, which is called by the label from here on, and `name:max`, whose answers are as
                risky as their riskiest token.
        """
        label, _, place = name.rpartition("=")
        one = self.shelf.open(place.removesuffix(":max"))
        one.calibrations = None
        if place.endswith(":max"):
            one = Largest(one)
        one.name = label or name
        return one


class Largest(Estimator):
    """An untrained estimator whose answer is as risky as its riskiest token. Its tokens are those of the other."""

    def __init__(self, one: Estimator) -> None:
        self.name, self.label, self.level, self.needs = one.name, f"{one.label}, largest", one.level, one.needs
        self.unit, self.value_map = one.unit, one.value_map
        self._one = one

    def new_state(self) -> Any:
        """See `Estimator.new_state`."""
        return self._one.new_state()

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """See `Estimator.score_token`."""
        return self._one.score_token(step, state)

    def finish(self, state: Any) -> dict[int, Risk]:
        """See `Estimator.finish`."""
        return self._one.finish(state)

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """The riskiest of the answer's own tokens; of all of them where it has nothing but its end."""
        risks = [t.risks[self.name] for t in tokens if not (t.is_end or t.is_reasoning)]
        top = max(risks or [t.risks[self.name] for t in tokens], key=lambda risk: risk.raw)
        return top, Summary(top.raw, top.raw, top.raw)


@dataclass(frozen=True, slots=True)
class Scored:
    """A cached answer with the risks that estimators give it: `risks` of the answer, `tokens` with their own."""

    answer: AnswerRow
    risks: dict[str, Risk]
    tokens: tuple[ScoredToken, ...]


def replay(cache: FeatureCache, estimators: Sequence[Estimator], splits: Collection[str] = ()) -> Iterator[Scored]:
    """Score the answers of a cache in order; those without a token are left out.

    Args:
        estimators: opened for the model that wrote the answers. splits: only answers of these; all when none is named.

    Raises:
        InputError: the cache lacks a signal, or an estimator gave no score because it must ask the model again.
    """
    for one in estimators:
        if one.needs.prompt_attention or one.needs.prompt_rows or one.needs.watched_ids:
            raise InputError(f"{one.label} reads signals of the prompt, which no cache holds; leave it out.")
    wanted = signals_for(estimators, signals_of(cache))
    reader = _Reader(cache, wanted)
    for index, answer in enumerate(cache.answers):
        if not answer.answer_ids or (splits and answer.split not in splits):
            continue
        scorer = Scorer(estimators, AnswerContext((), tuple(as_messages(answer.messages)), None, None))
        for step in reader.steps(index):
            scorer.push(step)
        scorer.finish()
        risks, _ = scorer.answer_scores()
        silent = [one.label for one in estimators if one.name not in risks]
        if silent:
            raise InputError(f"{silent[0]} must ask the model again, which a cache cannot answer; leave it out.")
        yield Scored(answer, risks, tuple(scorer.tokens))


def signals_of(cache: FeatureCache) -> Signals:
    """What the cached steps carry."""
    names = cache.names
    return Signals(
        top_n=cache.array("top_logprobs").shape[1] if "top_logprobs" in names else 0,
        entropy="entropy" in names,
        hidden_layers=cache.hidden_layers,
        attention_lags=cache.array("attention").shape[3] if "attention" in names else 0,
    )


class _Reader:
    """Steps of a cache's answers, with no more signals than are wanted."""

    def __init__(self, cache: FeatureCache, wanted: Signals) -> None:
        self._cache, self._wanted = cache, wanted
        names = ["logprob", "entropy", "token_id", *(f"hidden_{layer}" for layer in wanted.hidden_layers)]
        names += ["attention"] if wanted.attention_lags else []
        names += ["top_logprobs"] if "top_logprobs" in cache.names else []
        self._arrays = {name: cache.array(name) for name in names}

    def steps(self, index: int) -> list[TokenStep]:
        """The steps of one answer, as the engine gave them."""
        answer, span = self._cache.answers[index], self._cache.span(index)
        rows = {name: array[span] for name, array in self._arrays.items()}
        tensors = {
            name: torch.from_numpy(np.array(values, np.float32))
            for name, values in rows.items()
            if name == "attention" or name.startswith(("hidden_", "top_"))
        }
        return [self._step(answer, j, rows, tensors) for j in range(len(answer.answer_ids))]

    def _step(
        self, answer: AnswerRow, j: int, rows: dict[str, np.ndarray], tensors: dict[str, torch.Tensor]
    ) -> TokenStep:
        start, end = answer.spans[j]
        return TokenStep(
            index=j,
            token_id=answer.answer_ids[j],
            text=answer.text[start:end],
            span=(start, end),
            logprob=float(rows["logprob"][j]),
            entropy=float(rows["entropy"][j]),
            alternatives=tuple(Alternative(-1, "", float(p)) for p in rows.get("top_logprobs", [()] * (j + 1))[j]),
            is_end=j == len(answer.answer_ids) - 1 and answer.finish_reason == "stop",
            signals=self._signals(j, tensors),
        )

    def _signals(self, j: int, tensors: dict[str, torch.Tensor]) -> StepSignals:
        attention = tensors["attention"][j] if "attention" in tensors else None
        return StepSignals(
            hidden={layer: tensors[f"hidden_{layer}"][j] for layer in self._wanted.hidden_layers},
            attention=attention,
            attention_layers=() if attention is None else tuple(range(len(attention))),
            top_logprobs=tensors["top_logprobs"][j] if "top_logprobs" in tensors else None,
        )
