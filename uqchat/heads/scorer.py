"""A head over the steps of one answer, as they come. Knows no estimator, no calibration and no page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from uqchat.errors import InputError
from uqchat.heads.assemble import UncertaintyHead
from uqchat.heads.base import ClaimHead
from uqchat.heads.encoder import RowEncoder
from uqchat.types import TokenStep


class HeadScorer:
    """Feed every step of one answer, in order; logits come back.

    Token heads that read each row by itself, and causal ones, give the newest token's final logit. Heads that look at
    all rows give all tokens' logits again, as the answer so far makes them. Claim heads give none: ask `claims`.

    Args:
        growth: how much longer, as a share, the answer may grow before earlier tokens are looked at again. 0 does so
            with every token. Between two such looks only the newest token gets a logit, a provisional one in which
            earlier rows do not yet know of it; `finish` settles all.
    """

    def __init__(self, head: UncertaintyHead, growth: float = 0.0) -> None:
        self.head, self.growth = head, growth
        self._features = head.features.stream()
        self._device = next(head.module.parameters()).device
        self._parts: list[torch.Tensor] = []  # embedded rows, (n, d) each
        self._encoder: RowEncoder | None = None
        self._settled = 0  # answer tokens whose logits are as of the newest look
        self.num_tokens = 0

    @torch.inference_mode()
    def add(self, step: TokenStep) -> torch.Tensor:
        """Take a step without scoring it, where only claims are wanted; gives its embedded rows (n, d).

        Raises:
            InputError: the step carries no signals of the model.
        """
        rows = self.head.module.embed(self._features.push(step).to(self._device))
        self._parts.append(rows)
        self.num_tokens += 1
        return rows

    @torch.inference_mode()
    def push(self, step: TokenStep) -> dict[int, float]:
        """Logits by token index that are new or changed with this step. Raises what `add` raises."""
        rows = self.add(step)
        if self.head.level == "claim":
            return {}
        if self.head.is_revising:
            is_due = self.num_tokens > self._settled * (1 + self.growth)
            return self._look_again() if is_due else self._newest(self._encoder, rows)
        if self.head.module.encoder is not None and self._encoder is None:
            self._encoder = RowEncoder(self.head.module.encoder, is_causal=True)
        return self._newest(self._encoder, rows)

    @torch.inference_mode()
    def finish(self) -> dict[int, float]:
        """The answer is whole: logits that are still to change, so that all are as if it had been scored at once."""
        is_open = self.head.level == "token" and self.head.is_revising and self._settled < self.num_tokens
        return self._look_again() if is_open else {}

    @torch.inference_mode()
    def claims(self, claims: Sequence[Iterable[int]]) -> list[float]:
        """One logit per claim, as of the answer so far.

        A token head's claim has the logit of the mean of its tokens' probabilities.

        Args:
            claims: token indices of each claim.

        Raises:
            InputError: a claim without tokens, or with one that the answer does not have.
        """
        if not claims:
            return []
        mask = self._mask(claims)
        module = self.head.module
        rows = torch.cat(self._parts)
        if isinstance(module, ClaimHead):
            return torch.cat([module.judge(rows[None], one[None]) for one in mask]).tolist()
        if module.encoder is not None:
            rows = RowEncoder(module.encoder, module.is_causal).push(rows)
        logits = module.classify(rows)
        return [mean_logit(logits[one]) for one in mask]

    @property
    def _first(self) -> int:
        """The row of the answer's first token among those kept."""
        return sum(len(part) for part in self._parts) - self.num_tokens

    def _newest(self, encoder: RowEncoder | None, rows: torch.Tensor) -> dict[int, float]:
        seen = rows if encoder is None else encoder.push(rows)
        return {self.num_tokens - 1: self.head.module.classify(seen[-1]).item()}

    def _look_again(self) -> dict[int, float]:
        rows = torch.cat(self._parts)
        self._parts = [rows]
        self._encoder = RowEncoder(self.head.module.encoder, is_causal=False)
        logits = self.head.module.classify(self._encoder.push(rows)[self._first :])
        self._settled = self.num_tokens
        return dict(enumerate(logits.tolist()))

    def _mask(self, claims: Sequence[Iterable[int]]) -> torch.Tensor:
        mask = torch.zeros(len(claims), self._first + self.num_tokens, dtype=torch.bool, device=self._device)
        for number, claim in enumerate(claims):
            indices = [int(i) for i in claim]
            if not indices or not all(0 <= i < self.num_tokens for i in indices):
                raise InputError(
                    f"Claim {number} must name tokens from 0 to {self.num_tokens - 1}; got {str(indices)[:80]}."
                )
            mask[number, [self._first + i for i in indices]] = True
        return mask


def mean_logit(logits: torch.Tensor) -> float:
    """log(m / (1 - m)) of the mean m of the sigmoids, exact where m is next to 0 or 1."""
    log_sigmoid = torch.nn.functional.logsigmoid
    return (log_sigmoid(logits).logsumexp(0) - log_sigmoid(-logits).logsumexp(0)).item()
