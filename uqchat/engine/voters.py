"""What voters say of a token: from the logits of their rows, which live for one step only. Knows no loop.

A voter is a row beside an answer's row with an adapter of its own: it reads the same prompt and is given every token
that the answer's row chose. Source: mutual information of token and voter, as in BALD (Houlsby et al. 2011,
arXiv 1112.5745, equation 2), here in nats over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uqchat.engine.rows import Row
from uqchat.types import Signals, StepSignals, Votes

BLOCK = 16  # positions whose distributions exist at a time, for all voters


@dataclass(frozen=True, eq=False)
class Ballot:
    """One answer's logits at some positions: `own`, (T, V), and by adapter those of its voters."""

    signals: Signals
    own: Tensor
    voters: Mapping[str | None, Tensor]

    def __getitem__(self, positions: slice) -> Ballot:
        """The part of these positions."""
        parts = {name: logits[positions] for name, logits in self.voters.items()}
        return Ballot(self.signals, self.own[positions], parts)

    @property
    def decided(self) -> Tensor:
        """The logits that are shown and sampled, (T, V): the row's own, or log of the voters' mean distribution."""
        mean = next((one for one in self.signals.ensembles if one.prediction == "mean"), None)
        return self.own if mean is None else mean_logits(self._stacked(mean.members))

    def add_to(self, signals: Sequence[StepSignals | None], chosen: Tensor) -> list[StepSignals | None]:
        """The signals of each position, with what every ensemble says of the token chosen there, (T,)."""
        found: list[StepSignals | None] = list(signals)
        for ensemble in self.signals.ensembles:
            for i, votes in enumerate(count_votes(self._stacked(ensemble.members), chosen)):
                known = found[i] or StepSignals()
                found[i] = replace(known, votes={**known.votes, ensemble: votes})
        return found

    def _stacked(self, members: Sequence[str]) -> Tensor:
        return torch.stack([self.voters[name] for name in members])  # (n, T, V)


def ballot_of(row: Row, rows: Sequence[Row], logits: Sequence[Tensor]) -> Ballot | None:
    """What an answer's row and its voters gave in one forward; None where nobody votes.

    Args:
        logits: of each of `rows`, (T, V).
    """
    signals = row.request.signals
    if not signals.ensembles:
        return None
    group = [(each, of) for each, of in zip(rows, logits, strict=True) if each is row or each.leader is row]
    found = {each.request.adapter: of.float() for each, of in group}
    return Ballot(signals, found[row.request.adapter], found)


def count_votes(logits: Tensor, chosen: Tensor) -> list[Votes]:
    """What n voters say of each chosen token.

    Args:
        logits: (n, T, V), float32, raw; -inf is allowed. A voter with NaN or inf among them gives the probability NaN.
        chosen: (T,) ids.
    """
    parts = zip(logits.split(BLOCK, dim=1), chosen.split(BLOCK), strict=True)
    return [votes for block, ids in parts for votes in _count(block, ids)]


def _count(logits: Tensor, chosen: Tensor) -> list[Votes]:
    probs, count = logits.softmax(dim=-1), len(logits)  # (n, T, V)
    picked = probs.gather(-1, chosen[None, :, None].expand(count, -1, 1))[..., 0]  # (n, T)
    share = (logits.argmax(dim=-1) == chosen).float().mean(dim=0)
    rows = torch.cat([mutual_information(probs)[None], share[None], picked]).T.tolist()  # one transfer
    return [Votes(row[0], row[1], tuple(row[2:])) for row in rows]


def mutual_information(probs: Tensor) -> Tensor:
    """H[mean of p_i] - mean of H[p_i], nats, (...): 0 where the n distributions agree, ln n where they are disjoint.

    Args:
        probs: (n, ..., V).
    """
    each = torch.special.entr(probs).sum(dim=-1).mean(dim=0)
    whole = torch.special.entr(probs.mean(dim=0)).sum(dim=-1)
    return (whole - each).clamp(0.0, math.log(len(probs)))


def mean_logits(logits: Tensor) -> Tensor:
    """Logarithm of the mean of n distributions, (..., V), from their logits, (n, ..., V)."""
    return logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(logits))
