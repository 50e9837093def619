"""Heads that give one logit per claim. They know rows of features, no language model and no file."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from uqchat.heads.base import ENCODER_OPTIONS, MLP_OPTIONS, ClaimHead, Option, classifier, mlp, projection
from uqchat.heads.encoder import make_encoder, run_encoder

MAX_POSITIONS = 512  # of `claim_light`, its summary position included
HUGE = 1e4  # what the reference puts in place of an infinite feature


class LinearClaim(ClaimHead):
    """A logistic regression on the mean row of the claim."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_features, 1)

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `ClaimHead.judge`."""
        return self.classifier(mean_inside(rows, claims))[:, 0]


class MlpClaim(ClaimHead):
    """`Saplma` up to its last layer on each row, that layer on the claim's mean."""

    options: ClassVar[dict[str, Option]] = MLP_OPTIONS

    def __init__(
        self, num_features: int, internal_dim1: int = 256, internal_dim2: int = 128, internal_dim3: int = 64
    ) -> None:
        super().__init__()
        self.layers = mlp(num_features, (internal_dim1, internal_dim2, internal_dim3))

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """See `ClaimHead.embed`."""
        rows = features.float()
        for layer in self.layers[:-1]:
            rows = layer(rows)
        return rows

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `ClaimHead.judge`."""
        return self.layers[-1](mean_inside(rows, claims))[:, 0]


class Claim(ClaimHead):
    """A transformer over all rows, each marked as inside or outside the claim; the mean of those inside is judged.

    `mask_future_tokens` of the published code hides nothing and is kept only as a name. `has_input_norm` is the variant
    that normalises its features first.
    """

    options: ClassVar[dict[str, Option]] = {
        "head_dim": Option(256, 1),
        **ENCODER_OPTIONS,
        "mask_future_tokens": Option(False),
    }

    def __init__(
        self,
        num_features: int,
        head_dim: int = 256,
        n_layers: int = 2,
        n_heads: int = 8,
        dropout: float = 0.1,
        mask_future_tokens: bool = False,
        is_causal: bool = False,
        reads_prompt: bool = True,
        has_input_norm: bool = False,
    ) -> None:
        super().__init__()
        self.is_causal, self.reads_prompt, self.has_input_norm = is_causal, reads_prompt, has_input_norm
        self.proj = projection(num_features, head_dim, dropout, has_input_norm)
        self.entity_embedding = nn.Embedding(2, head_dim)
        self.transformer_encoder = make_encoder(head_dim, n_heads, n_layers, dropout)
        self.classifier = classifier(head_dim, head_dim, dropout)

    @property
    def encoder(self) -> nn.TransformerEncoder:
        """What looks at all rows together."""
        return self.transformer_encoder

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """See `ClaimHead.embed`."""
        features = features.float()
        if self.has_input_norm:  # that variant also lives with broken features, as the reference does
            features = features.nan_to_num(nan=0.0, posinf=HUGE, neginf=-HUGE)
        return self.proj(features)

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `ClaimHead.judge`."""
        marked = rows + self.entity_embedding(claims.long())
        seen = run_encoder(self.transformer_encoder, marked, is_real, self.is_causal)
        return self.classifier(mean_inside(seen, claims))[:, 0]


class ClaimFirstToken(Claim):
    """`Claim` that knows each claim by its first row only: risk before the claim is written."""

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `ClaimHead.judge`."""
        return super().judge(rows, claims & (claims.long().cumsum(dim=1) == 1), is_real)


class ClaimLight(ClaimHead):
    """A smaller `Claim` with positions, judged by a summary position in front; it reads the first 511 rows only."""

    options: ClassVar[dict[str, Option]] = {
        "head_dim": Option(256, 1),
        **{name: option for name, option in ENCODER_OPTIONS.items() if name not in ("is_causal", "reads_prompt")},
    }

    def __init__(
        self, num_features: int, head_dim: int = 256, n_layers: int = 2, n_heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(num_features, head_dim), nn.LayerNorm(head_dim), nn.GELU(), nn.Dropout(dropout)
        )
        self.entity_embedding = nn.Embedding(2, head_dim)
        self.cls_token_embedding = nn.Parameter(torch.randn(1, 1, head_dim))
        self.position_embeddings = nn.Embedding(MAX_POSITIONS, head_dim)
        self.transformer_encoder = make_encoder(head_dim, n_heads, n_layers, dropout)
        self.classifier = classifier(head_dim, head_dim, dropout)

    @property
    def encoder(self) -> nn.TransformerEncoder:
        """What looks at all rows together."""
        return self.transformer_encoder

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """See `ClaimHead.embed`."""
        return self.proj(features.float())

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `ClaimHead.judge`."""
        kept = MAX_POSITIONS - 1
        marked = rows[:, :kept] + self.entity_embedding(claims[:, :kept].long())
        summary = self.cls_token_embedding.expand(len(marked), -1, -1)
        whole = torch.cat([summary, marked], dim=1)
        whole = whole + self.position_embeddings.weight[: whole.shape[1]]
        if is_real is not None:
            is_real = torch.cat([is_real.new_ones(len(marked), 1), is_real[:, :kept]], dim=1)
        seen = run_encoder(self.transformer_encoder, whole, is_real, is_causal=False)
        return self.classifier(seen[:, 0])[:, 0]


def mean_inside(rows: torch.Tensor, claims: torch.Tensor) -> torch.Tensor:
    """(N, T, d) and (N, T) to the mean of each claim's rows, (N, d); 0 for a claim without rows."""
    weights = claims.to(rows.dtype)
    return (rows * weights[..., None]).sum(dim=1) / weights.sum(dim=1).clamp(min=1)[:, None]
