"""A small logistic combination of other estimators' raw scores. Knows how to score with them, not how it was fitted.

A member is an untrained estimator's name, or a folder named relative to the combination's own (`../probe`). Members run
with states of their own, but for those that were chosen beside it, which run once; a token's risk changes when one of
its members' does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import or_
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, Self

import torch

from uqchat.artifact_files import card_text, read_config_json, read_tensors, require, write_artifact
from uqchat.engine.adapters import Adapter
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp, stored_risk
from uqchat.estimators.running import Running
from uqchat.estimators.word_pool import WordPool
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin
from uqchat.restating import newest_question
from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep

FORMAT = "uqchat-combination"
STATISTICS = ("raw", "max")
STEP_FIELDS = tuple(f.name for f in fields(ScoredToken) if f.name != "risks")


@dataclass(frozen=True, slots=True)
class Member:
    """One input: an estimator, and which of its answer scores; of a token its raw score counts either way."""

    estimator: str
    """A name, or a folder relative to the combination's."""
    statistic: Literal["raw", "max"] = "raw"
    """"raw": its score of the answer; "max": the largest of its tokens'."""

    def __post_init__(self) -> None:
        """Raises ArtifactError on an unknown statistic."""
        if self.statistic not in STATISTICS:
            raise ArtifactError(f"A combination's statistic must be raw or max; got {str(self.statistic)[:40]!r}.")


@dataclass(frozen=True)
class Formula:
    """Log odds = bias + sum of weight times raw score."""

    weights: tuple[float, ...]
    bias: float

    def __call__(self, raws: Sequence[float]) -> float:
        """Log odds of being wrong from one raw score for each member."""
        return self.bias + math.fsum(w * raw for w, raw in zip(self.weights, raws, strict=True))


@dataclass
class CombinationState:
    """One answer so far."""

    parts: list[Running]
    tokens: list[ScoredToken] = field(default_factory=list)
    raws: list[dict[int, float]] = field(default_factory=list)  # of each estimator, by token
    counts: list[int] = field(default_factory=list)  # follow-ups that each estimator asked for
    pool: WordPool = field(default_factory=WordPool)


class Combination(Estimator):
    """Members' raw scores, weighted. Tokens get a combination of their own where all members score tokens; by word,
    each has the highest score of its word's tokens, and `own` more where the word is the answer's own."""

    name = "combination"
    label = "Combination"
    level: Literal["token", "answer"] = "answer"
    needs = Signals()
    trainable = True
    unit = "log odds of being wrong"
    value_map = "1 / (1 + exp(-log odds))"
    format: ClassVar[str | None] = FORMAT

    def __init__(
        self,
        members: Sequence[Member],
        estimators: Mapping[str, Estimator],
        answer: Formula,
        token: Formula | None,
        info: Origin,
        name: str = "combination",
        is_by_word: bool = False,
        own: float = 0.0,
    ) -> None:
        self.members, self.answer, self.token, self.info, self.name = tuple(members), answer, token, info, name
        self.is_by_word, self.own = is_by_word, own
        self._keys = tuple(estimators)  # several members may be statistics of one estimator
        self._estimators = tuple(estimators.values())
        self.needs = reduce(or_, (one.needs for one in self._estimators), Signals())
        self.level = "token" if token else "answer"
        self.reads_on = any(one.reads_on for one in estimators.values())

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """Those of all members."""
        return {key: adapter for one in self._estimators for key, adapter in one.adapters.items()}

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """See `Estimator.from_folder`; members are opened too."""
        folder = Path(folder)
        raw = read_config_json(folder, FORMAT, ("members", "has_token", "is_by_word", "own"))
        info = read_origin(require(raw, "info", dict))
        if not allow_mismatch:
            check_origin(info, model, "combination")
        try:
            members = [Member(**entry) for entry in require(raw, "members", list)]
        except TypeError as error:
            raise ArtifactError(f"config.json: `members` of the combination cannot be read: {error}") from error
        tensors = read_tensors(folder)
        answer = _formula("answer", tensors, len(members))
        token = _formula("token", tensors, len(members)) if require(raw, "has_token", bool) else None
        is_by_word = require({"is_by_word": False, **raw}, "is_by_word", bool)
        own = require({"own": 0.0, **raw}, "own", float)
        return cls(members, open_members(members, folder, model), answer, token, info, name, is_by_word, own)

    def save(self, folder: Path) -> None:
        """See `Estimator.save`; members are named, not copied."""
        formulas = {"answer": self.answer, **({"token": self.token} if self.token else {})}
        tensors = {f"{key}.weights": torch.tensor(one.weights, dtype=torch.float64) for key, one in formulas.items()}
        tensors |= {f"{key}.bias": torch.tensor([one.bias], dtype=torch.float64) for key, one in formulas.items()}
        settings = {
            "members": [{"estimator": m.estimator, "statistic": m.statistic} for m in self.members],
            "has_token": self.token is not None,
            "is_by_word": self.is_by_word,
            "own": self.own,
        }
        facts = {f"Weights, {key}": _described(self.members, one) for key, one in formulas.items()}
        facts["A token's score"] = "the highest of its word's tokens" if self.token and self.is_by_word else ""
        facts["Of the answer's own words"] = (
            f"{self.own:+.3g}, for neither function words nor the question's" if self.own else ""
        )
        use = "Its score is a logit, higher is riskier: name this folder as an estimator of `uqchat`."
        write_artifact(Path(folder), FORMAT, settings, tensors, self.info, card_text(self.label, facts, self.info, use))

    # ---- one answer

    def new_state(self) -> CombinationState:
        """A state of each member."""
        parts = [Running(one) for one in self._estimators]
        return CombinationState(parts, raws=[{} for _ in parts], pool=WordPool(self.own))

    def share(self, running: Mapping[Hashable, Running], state: CombinationState) -> None:
        """Members that were chosen too run once. Not those with follow-ups: each is told the replies to its own."""
        state.parts = [
            part if part.estimator.reads_on else running.get(part.estimator.source, part) for part in state.parts
        ]

    def begin(self, context: AnswerContext, state: CombinationState) -> None:
        """See `Estimator.begin`."""
        state.pool.ask(newest_question(context.messages))
        for part in state.parts:
            part.begin(context)

    def score_token(self, step: TokenStep | ScoredToken, state: CombinationState) -> dict[int, Risk]:
        """Tokens for which some member's score is new or changed, as soon as all members have one."""
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        state.tokens.append(ScoredToken(**{name: getattr(step, name) for name in STEP_FIELDS}))
        if self.is_by_word:
            state.pool.add(step.index, step.text)
        return self._take(state, [part.push(step) for part in state.parts])

    def finish(self, state: CombinationState) -> dict[int, Risk]:
        """Last changes of the tokens; without a formula for tokens, the answer's risk on all of them."""
        changed = self._take(state, [part.finish() for part in state.parts])
        if self.token is None:
            return self._everywhere(state)
        return changed | {i: as_risk(raw) for i, raw in (state.pool.close() if self.own else {}).items()}

    def follow_ups(
        self, context: AnswerContext, tokens: Sequence[ScoredToken], state: CombinationState
    ) -> list[FollowUp]:
        """Those of all members, one after the other."""
        asked = [part.estimator.follow_ups(context, tokens, part.state) for part in state.parts]
        state.counts = [len(own) for own in asked]
        return [each for own in asked for each in own]

    def take_replies(self, replies: list[TokenStep], state: CombinationState) -> dict[int, Risk]:
        """To each member what it asked for."""
        found, start = [], 0
        for part, count in zip(state.parts, state.counts, strict=True):
            own = replies[start : start + count]
            found.append(part.estimator.take_replies(own, part.state) if own else {})
            start += count
        changed = self._take(state, found)
        return changed if self.token else self._everywhere(state)

    def score_answer(self, tokens: Sequence[ScoredToken], state: CombinationState) -> tuple[Risk, Summary] | None:
        """The members' answer scores, weighted; None where one of them has none. Stored tokens carry it at best."""
        if not state.tokens and not self.token:
            raw = next((token.risks[self.name].raw for token in reversed(tokens) if self.name in token.risks), None)
        else:
            raw = self._answer_raw(state)
        return None if raw is None else (as_risk(raw), Summary(raw, raw, raw))

    # ---- inside

    def _take(self, state: CombinationState, found: Sequence[Mapping[int, Risk]]) -> dict[int, Risk]:
        changed: set[int] = set()
        for own, risks in zip(state.raws, found, strict=True):
            own.update({index: risk.raw for index, risk in risks.items()})
            changed |= set(risks)
        if self.token is None:
            return {}
        whole = [index for index in sorted(changed) if all(index in own for own in state.raws)]
        by_key = dict(zip(self._keys, state.raws, strict=True))
        raws = {i: self.token([by_key[m.estimator][i] for m in self.members]) for i in whole}
        return {i: as_risk(raw) for i, raw in (state.pool.update(raws) if self.is_by_word else raws).items()}

    def _everywhere(self, state: CombinationState) -> dict[int, Risk]:
        raw = self._answer_raw(state)
        said = [token.index for token in state.tokens if not (token.is_end or token.is_reasoning)]
        return {} if raw is None else {index: as_risk(raw) for index in said}

    def _answer_raw(self, state: CombinationState) -> float | None:
        found = {}
        for key, part, own in zip(self._keys, state.parts, state.raws, strict=True):
            found[key] = self._statistics(part, own, state.tokens)
        raws = [found[member.estimator].get(member.statistic) for member in self.members]
        return None if any(raw is None for raw in raws) else self.answer(raws)

    @staticmethod
    def _statistics(part: Running, raws: Mapping[int, float], tokens: Sequence[ScoredToken]) -> dict[str, float]:
        """ "raw" and "max" of one member, as far as it has scored; tokens count as they do for every estimator."""
        one = part.estimator
        own = [
            replace(token, risks={one.name: Risk(0.0, raws[token.index])}) for token in tokens if token.index in raws
        ]
        counted = [raws[t.index] for t in own if not (t.is_end or t.is_reasoning)] or list(raws.values())
        found = {"raw": fmean(counted), "max": max(counted)} if counted else {}
        scored = one.score_answer(own, part.state)
        return {**found, "raw": scored[0].raw} if scored else found


def open_members(members: Sequence[Member], folder: Path, model: Any) -> dict[str, Estimator]:
    """The estimators of a combination, each once, by the name that the combination gives them.

    Raises:
        ArtifactError: none is named, or one is another combination. UqchatError: one cannot be opened.
    """
    if not members:
        raise ArtifactError("A combination needs at least one member.")
    found: dict[str, Estimator] = {}
    for member in members:
        is_folder = "/" in member.estimator or member.estimator.startswith(".")
        one = model.estimator(str((folder / member.estimator).resolve()) if is_folder else member.estimator)
        if isinstance(one, Combination):
            raise ArtifactError(f"{member.estimator} is a combination itself; name its members instead.")
        found[member.estimator] = one
    return found


def as_risk(raw: float) -> Risk:
    """Log odds of being wrong as a risk."""
    return Risk(value=1 / (1 + math.exp(-max(min(raw, 500.0), -500.0))), raw=raw)


def _formula(name: str, tensors: Mapping[str, torch.Tensor], count: int) -> Formula:
    weights, bias = tensors.get(f"{name}.weights"), tensors.get(f"{name}.bias")
    if weights is None or bias is None or weights.shape != (count,) or bias.shape != (1,):
        raise ArtifactError(f"The weights of `{name}` do not fit the {count} members of the combination.")
    return Formula(tuple(weights.double().tolist()), bias.double().item())


def _described(members: Sequence[Member], formula: Formula) -> str:
    named = [
        f"{weight:+.3g} {'max of ' if member.statistic == 'max' else ''}{member.estimator}"
        for member, weight in zip(members, formula.weights, strict=True)
    ]
    return f"{formula.bias:.3g} {' '.join(named)}"
