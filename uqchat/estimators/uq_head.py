"""The uncertainty head: a small network that reads the model's attention, probabilities and hidden states.

Published heads and our own, see `uqchat.heads`. Source: Shelmanov et al. 2025, "A head to predict and a head to
question" (arXiv 2505.08200). Knows no engine and no page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from uqchat.claims import answer_spans, token_indices
from uqchat.estimators.base import Estimator, stored_risk
from uqchat.heads import HeadError, HeadScorer, UncertaintyHead, load_head, save_head
from uqchat.heads.luh_format import CONFIG, WEIGHTS
from uqchat.heads.own_format import FORMAT, card_of
from uqchat.types import Risk, ScoredToken, Signals, Span, TokenStep

GROWTH = 0.25  # of the answer, before a head that looks both ways judges earlier tokens anew
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "\n")


@dataclass
class HeadState:
    """One answer so far. Claim heads keep the tokens, without signals, and how many claims have been judged."""

    scorer: HeadScorer
    tokens: list[TokenStep] = field(default_factory=list)
    num_judged: int = 0


class UqHead(Estimator):
    """A head's logit for every token, or for every claim: then each token of a claim has the claim's risk.

    A head that reads each row by itself and a causal one score a token once and for all. One that looks both ways
    judges earlier tokens anew when the answer has grown by a quarter, and all of them when it is whole. A claim head
    judges a sentence when it ends, and all sentences when the answer is whole. Stored tokens keep the risk they have.
    """

    name = "uq_head"
    label = "UQ head"
    level = "token"
    needs = Signals()
    trainable = True
    unit = "logit of being wrong"
    value_map = "1 / (1 + exp(-logit))"
    format = FORMAT
    files = ((CONFIG, WEIGHTS),)

    def __init__(self, head: UncertaintyHead, name: str = "uq_head", growth: float = GROWTH) -> None:
        self.head, self.name, self.growth = head, name, growth
        self.needs = head.needs
        self.level = "sentence" if head.level == "claim" else "token"
        self.notes, self.card = head.notes, card_of(head)

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """A head of our own format, or the published one's two files. Raises what `load_head` raises."""
        return cls(load_head(folder, model, allow_mismatch=allow_mismatch, source=name), name)

    def save(self, folder: Path) -> None:
        """config.json, model.safetensors and a card."""
        save_head(self.head, folder)

    def new_state(self) -> HeadState:
        """No row seen."""
        return HeadState(HeadScorer(self.head, self.growth))

    def score_token(self, step: TokenStep | ScoredToken, state: HeadState) -> dict[int, Risk]:
        """Risks that this step adds or changes.

        Raises:
            HeadError: the head gave no finite number.
        """
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        if self.level == "token":
            return self._risks(state.scorer.push(step))
        state.scorer.add(step)
        state.tokens.append(replace(step, signals=None))
        return self._ended_claims(state) if step.text.rstrip(" \"'”’)*").endswith(SENTENCE_ENDS) else {}

    def finish(self, state: HeadState) -> dict[int, Risk]:
        """Everything as if the answer had been scored at once. Raises what `score_token` raises."""
        if self.level == "token":
            return self._risks(state.scorer.finish())
        return self._claims(state, answer_spans(state.tokens))

    def _ended_claims(self, state: HeadState) -> dict[int, Risk]:
        """Sentences that have ended since this was last asked; what follows may still change their risk."""
        spans = answer_spans(state.tokens)
        new = spans[state.num_judged :]
        state.num_judged = len(spans)
        return self._claims(state, new)

    def _claims(self, state: HeadState, spans: Sequence[Span]) -> dict[int, Risk]:
        claims = [indices for indices in token_indices(spans, state.tokens) if indices]
        logits = state.scorer.claims(claims)
        return self._risks({i: logit for claim, logit in zip(claims, logits, strict=True) for i in claim})

    def _risks(self, logits: dict[int, float]) -> dict[int, Risk]:
        wrong = next((i for i, logit in logits.items() if not math.isfinite(logit)), None)
        if wrong is not None:
            raise HeadError(
                f"The head {self.name} gave {logits[wrong]} for token {wrong}: its weights, or the model's signals in"
                " this number format, are out of range. Use another head, or load the model in float32."
            )
        return {i: Risk(value=_sigmoid(logit), raw=logit) for i, logit in logits.items()}


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
