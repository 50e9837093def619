"""A small network that gives every logit a variance, and what follows from it. Knows no language model and no file.

Each logit becomes a Gaussian, z_v ~ N(logit_v, sigma_v^2), so that the softmax of a draw is a random distribution.
Source: Kendall & Gal 2017 (arXiv 1703.04977), section 3.3 and equation 12. Deviations: the log-variance of token v is
a product of a few numbers that depend on the state with a few that depend on v's output embedding, so that the head's
size does not grow with the vocabulary; tokens below the likeliest few are one class without variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

START = -2.0  # log-variance of an untrained head: sigma 0.37, a nudge beside logits that differ by several


@dataclass(frozen=True, eq=False)
class Shortlist:
    """The likeliest tokens of each position and all others as one more class, which comes last."""

    ids: Tensor
    """(N, K)."""
    logits: Tensor
    """(N, K + 1), float32, the others' joint logit last."""

    def place_of(self, targets: Tensor) -> Tensor:
        """(N,) the class of each target; K where it is among the others."""
        found = self.ids == targets[:, None]
        return torch.where(found.any(dim=-1), found.float().argmax(dim=-1), self.ids.shape[1])


def shortlist(logits: Tensor, size: int) -> Shortlist:
    """The `size` largest of (N, V) raw logits, fewer where V is smaller."""
    largest, ids = logits.float().topk(min(size, logits.shape[-1] - 1), dim=-1)
    others = logits.float().scatter(1, ids, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return Shortlist(ids, torch.cat([largest, others], dim=-1))


class LogitVariance(nn.Module):
    """States to log-variances of logits.

    Args:
        hidden_size: D, of states and output embeddings. num_layers: states for each position.
        width: of the hidden layer. rank: numbers in which state and token meet.
    """

    def __init__(self, hidden_size: int, num_layers: int, width: int = 64, rank: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size * num_layers, width)
        self.state = nn.Linear(width, rank + 1)
        self.token = nn.Linear(hidden_size, rank, bias=False)
        nn.init.zeros_(self.state.weight[:rank])
        nn.init.zeros_(self.state.bias)

    def forward(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Log-variances, (N, K), float32.

        Args:
            states: (N, layers, D). embeddings: (N, K, D), output embeddings of the tokens that are asked about.
        """
        normed = nn.functional.layer_norm(states.float(), states.shape[-1:])
        own = self.state(nn.functional.gelu(self.hidden(normed.flatten(1))))  # (N, rank + 1)
        tokens = self.token(nn.functional.normalize(embeddings.float(), dim=-1) * embeddings.shape[-1] ** 0.5)
        return START + own[:, -1:] + torch.einsum("nr,nkr->nk", own[:, :-1], tokens)


def draw(logits: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Log-probabilities of S draws, (S, N, K + 1), by the reparameterisation z = logit + sigma * noise.

    Args:
        logits: (N, K + 1), the last one without variance. log_variance: (N, K). noise: (S, N, K), standard normal.
    """
    moved = logits[:, :-1] + (0.5 * log_variance).exp() * noise
    return torch.cat([moved, logits[:, -1:].expand(len(noise), -1, -1)], dim=-1).log_softmax(dim=-1)


def log_likelihood(drawn: Tensor, targets: Tensor) -> Tensor:
    """(N,): log of the mean probability of each target over the draws, equation 12 of Kendall & Gal 2017.

    Args:
        drawn: (S, N, C), log-probabilities. targets: (N,), classes.
    """
    own = drawn.gather(-1, targets.expand(len(drawn), -1)[..., None])[..., 0]  # (S, N)
    return own.logsumexp(dim=0) - torch.log(torch.tensor(float(len(drawn))))


def expected_entropy(drawn: Tensor) -> Tensor:
    """(N,): mean entropy of the draws, nats: the aleatoric part. drawn: (S, N, C), log-probabilities."""
    return -(drawn.exp() * drawn).nan_to_num(0.0).sum(dim=-1).mean(dim=0)
