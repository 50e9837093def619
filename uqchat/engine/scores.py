"""Log-probability, entropy and the likeliest alternatives of each step, from raw logits. Knows no sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from uqchat.engine.largest import top
from uqchat.types import Alternative

NUM_ALTERNATIVES = 10


@dataclass(frozen=True, slots=True)
class StepScores:
    """Per row: nats, at temperature 1."""

    logprob: list[float]
    entropy: list[float]
    top_logprobs: list[list[float]]
    top_ids: list[list[int]]
    logits: torch.Tensor  # (B, V)
    lse: torch.Tensor  # (B, 1)

    def log_probs(self, row: int, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of chosen ids, (len(ids),) float32, copied."""
        return self.logits[row, list(ids)] - self.lse[row]


def score_logits(logits: torch.Tensor, chosen: torch.Tensor, top_n: int = NUM_ALTERNATIVES) -> StepScores:
    """Scores of the chosen ids under the raw logits.

    Args:
        logits: (B, V), float32, raw; -inf is allowed.
        chosen: (B,) ids.
        top_n: alternatives per row, descending.
    """
    values, ids = top(logits, top_n)
    shifted = logits - values[:, :1]  # (B, V)
    weights = shifted.exp()
    total = weights.sum(dim=-1, keepdim=True)
    lse = values[:, :1] + total.log()
    # -sum p log p, where log p = shifted - log total and sum p = 1
    entropy = total.log()[:, 0] - (weights * shifted).sum(dim=-1) / total[:, 0]
    if not torch.isfinite(entropy).all():  # 0 * -inf, which counts 0
        entropy = torch.special.entr(weights / total).sum(dim=-1)
    picked = logits.gather(1, chosen[:, None])
    floats = torch.cat([picked - lse, entropy[:, None], values - lse], dim=1).tolist()  # one transfer
    return StepScores(
        [row[0] for row in floats],
        [max(row[1], 0.0) for row in floats],
        [row[2:] for row in floats],
        ids.tolist(),
        logits,
        lse,
    )


class Vocabulary:
    """Text of single ids as they read inside a text, for alternatives; and which ids end an answer."""

    def __init__(self, tokenizer: Any, end_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.special_ids = frozenset(tokenizer.all_special_ids) | end_ids
        anchors = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._anchor = anchors[-1:]
        self._anchor_text = self.decode(self._anchor)
        self._texts: dict[int, str] = {}

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens left out, spaces as the model wrote them."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def text(self, token_id: int) -> str:
        """One id's text after another word, so that a leading space is kept; a special id by its name."""
        known = self._texts.get(token_id)
        if known is None:
            known = self._texts[token_id] = self._read(token_id)
        return known

    def _read(self, token_id: int) -> str:
        if token_id in self.special_ids:
            return str(self.tokenizer.convert_ids_to_tokens(token_id) or "")
        return self.decode([*self._anchor, token_id])[len(self._anchor_text) :]

    def alternatives(self, ids: list[int], logprobs: list[float]) -> tuple[Alternative, ...]:
        """The candidates of one step."""
        return tuple(Alternative(i, self.text(i), p) for i, p in zip(ids, logprobs, strict=True))


def end_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids: the model's generation config, else its config, else the tokenizer."""
    for source in (model.generation_config, model.config, tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, list | tuple) else [found])
    return frozenset()
