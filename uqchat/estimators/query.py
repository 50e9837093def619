"""The query: when the answer is whole, the model itself is asked whether it is correct, with a LoRA trained for that.

One more forward over prompt, answer and question, with the adapter's weights; the answer was written without them.
The same question without any adapter is the untrained variant. Knows no file: see `query_files`.
Source: Kapoor et al. 2024 (arXiv 2406.08391), section 4.2; untrained: Kadavath et al. 2022 (arXiv 2207.05221).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, Self

from uqchat.engine.adapters import Adapter
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp, ModelFacts, stored_risk
from uqchat.estimators.query_files import FORMAT, RELEASED, QueryFiles, read_query, write_query
from uqchat.estimators.query_format import Query, make_query, query_ids
from uqchat.restating import newest_question
from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep

MAX_SENTENCES = 16  # forwards at most for one answer; the sentences beyond are judged together with the last of these
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|\n+")


@dataclass
class QueryState:
    """What was asked about one answer, and the replies."""

    groups: list[tuple[int, ...]] = field(default_factory=list)  # token indices that each follow-up judges
    label_ids: tuple[int, int] = (0, 0)
    raws: list[float] = field(default_factory=list)


class ZeroShotQuery(Estimator):
    """P(no) of P(no) + P(yes) when the unchanged model is asked about its answer. No training, no adapter.

    Small models answer it nearly at chance; it is the yardstick of the trained query.
    """

    name = "query_zero_shot"
    label = "Query, untrained"
    level: Literal["sentence", "answer"] = "answer"
    needs = Signals()
    unit = "log odds of the reply no"
    value_map = "1 / (1 + exp(-log odds))"

    reads_on = True
    adapter: Adapter | None = None
    temperature = 1.0
    layout: Literal["chat", "text"] = "chat"
    format_name: str | None = None
    window = 2048

    def for_model(self, facts: ModelFacts) -> Self:
        """Inputs are cut to this model's context window."""
        self.window = facts.context_window or self.window
        return self

    def new_state(self) -> QueryState:
        """Nothing asked yet."""
        return QueryState()

    def score_token(self, step: TokenStep | ScoredToken, state: QueryState) -> dict[int, Risk]:
        """Nothing while the answer grows; a stored token keeps the risk it has."""
        return stored_risk(step, self.name) or {}

    def follow_ups(self, context: AnswerContext, tokens: Sequence[ScoredToken], state: QueryState) -> list[FollowUp]:
        """One forward for the whole answer or, at level "sentence", one for the answer up to the end of each."""
        query = self.query_for(context.tokenizer)
        said = [token for token in tokens if not (token.is_end or token.is_reasoning)]
        groups = sentences(said) if self.level == "sentence" else [said] if said else []
        state.label_ids = query.label_ids
        state.groups = [tuple(token.index for token in group) for group in groups]
        question = newest_question(context.messages)
        ids = [token.token_id for token in said]
        ends = [sum(map(len, groups[: i + 1])) for i in range(len(groups))]
        signals, adapter = Signals(watched_ids=query.label_ids), self.adapter.name if self.adapter else None
        inputs = [query_ids(query, context.tokenizer, context.prompt_ids, ids[:n], self.window, question) for n in ends]
        return [FollowUp(each, adapter, signals) for each in inputs]

    def query_for(self, tokenizer: Any) -> Query:
        """The wording in this tokenizer's ids."""
        return make_query(tokenizer, self.layout, self.format_name)

    def take_replies(self, replies: list[TokenStep], state: QueryState) -> dict[int, Risk]:
        """The risk of every token of what each reply judges."""
        state.raws = [self._log_odds(reply, state.label_ids) for reply in replies]
        return {index: as_risk(raw) for group, raw in zip(state.groups, state.raws, strict=True) for index in group}

    def _log_odds(self, reply: TokenStep, label_ids: tuple[int, int]) -> float:
        watched = reply.signals.watched_ids
        no, yes = (float(reply.signals.watched[watched.index(label)]) for label in label_ids)
        return (no - yes) / self.temperature

    def score_answer(self, tokens: Sequence[ScoredToken], state: QueryState) -> tuple[Risk, Summary] | None:
        """The last reply, which has read the whole answer. Of stored tokens, the last one's risk says the same."""
        raws = state.raws or [token.risks[self.name].raw for token in tokens if self.name in token.risks]
        return (as_risk(raws[-1]), Summary(fmean(raws), max(raws), math.fsum(raws))) if raws else None


class QueryEstimator(ZeroShotQuery):
    """The query answered by the model with a LoRA that was trained to answer it. The answer is written without it."""

    name = "query"
    label = "Query (LoRA + prompt)"
    trainable = True
    format: ClassVar[str | None] = FORMAT
    files = RELEASED

    def __init__(self, files: QueryFiles, name: str = "query", window: int = 2048) -> None:
        self.parts, self.name, self.window = files, name, window
        self.adapter, self.temperature = files.adapter, files.settings.temperature
        self.layout, self.format_name, self.level = files.settings.layout, files.settings.query, files.settings.level
        self.origin = files.info

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The LoRA, by a name made of its weights."""
        return {self.adapter.name: self.adapter}

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """The query of our own folder, or of a released calibration-tuning adapter. Raises what `Estimator` says."""
        files = read_query(Path(folder), model, allow_mismatch=allow_mismatch)
        made = cls(files, name, model.info.context_window)
        made.query_for(model.tokenizer)  # a tokenizer that cannot say no and yes is refused now, not after an answer
        return made

    def save(self, folder: Path) -> None:
        """config.json, the LoRA as PEFT writes it, and a card."""
        write_query(self.parts, Path(folder))


def as_risk(raw: float) -> Risk:
    """Log odds of "no" as a risk."""
    return Risk(value=1 / (1 + math.exp(-max(min(raw, 500.0), -500.0))), raw=raw)


def sentences(tokens: Sequence[ScoredToken]) -> list[list[ScoredToken]]:
    """The tokens, cut after each sentence's end; at most `MAX_SENTENCES` parts, none empty or blank."""
    if not tokens:
        return []
    start = tokens[0].span[0]
    text = "".join(token.text for token in tokens)
    cuts = [start + match.end() for match in SENTENCE_END.finditer(text)][: MAX_SENTENCES - 1]
    groups: list[list[ScoredToken]] = [[]]
    for token in tokens:
        while cuts and token.span[1] > cuts[0]:  # a token that crosses a cut opens the next sentence
            cuts.pop(0)
            if groups[-1]:
                groups.append([])
        groups[-1].append(token)
    return groups
