"""Heads that give one logit per token. They know rows of features, no language model and no file."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from uqchat.heads.base import ENCODER_OPTIONS, MLP_OPTIONS, Option, TokenHead, classifier, mlp, projection
from uqchat.heads.encoder import make_encoder, run_encoder

HIDDEN = 0.15  # share of next rows that `Compact` does not see in training


class Linear(TokenHead):
    """A logistic regression on a row."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_features, 1)

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.classify`."""
        return self.classifier(rows)[..., 0]


class Saplma(TokenHead):
    """Three hidden layers on a row (Azaria & Mitchell 2023)."""

    options: ClassVar[dict[str, Option]] = MLP_OPTIONS

    def __init__(
        self, num_features: int, internal_dim1: int = 256, internal_dim2: int = 128, internal_dim3: int = 64
    ) -> None:
        super().__init__()
        self.layers = mlp(num_features, (internal_dim1, internal_dim2, internal_dim3))

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.classify`."""
        for layer in self.layers:
            rows = layer(rows)
        return rows[..., 0]


class Luh(TokenHead):
    """A transformer over the rows of prompt and answer (Shelmanov et al. 2025).

    `is_causal` lets a row see itself and earlier rows only, and without `reads_prompt` there are the answer's rows
    alone; published heads see all of them.
    """

    options: ClassVar[dict[str, Option]] = {
        "head_dim": Option(4096, 1),
        "interim_dim": Option(0),
        **ENCODER_OPTIONS,
        "n_heads": Option(32, 1, 1024),
        "enable_feature_projection_layer": Option(True),
        "use_transformer_encoder": Option(True),
    }

    def __init__(
        self,
        num_features: int,
        head_dim: int = 4096,
        interim_dim: int = 0,
        n_layers: int = 2,
        n_heads: int = 32,
        dropout: float = 0.1,
        enable_feature_projection_layer: bool = True,
        use_transformer_encoder: bool = True,
        is_causal: bool = False,
        reads_prompt: bool = True,
    ) -> None:
        super().__init__()
        self.is_causal, self.reads_prompt = is_causal, reads_prompt
        size = head_dim if enable_feature_projection_layer else num_features
        self.proj = projection(num_features, size, dropout) if enable_feature_projection_layer else None
        self.transformer_encoder = make_encoder(size, n_heads, n_layers, dropout) if use_transformer_encoder else None
        self.classifier = classifier(size, interim_dim, dropout) if interim_dim else nn.Linear(size, 1)

    @property
    def encoder(self) -> nn.TransformerEncoder | None:
        """What looks at all rows together; None when each row stands alone."""
        return self.transformer_encoder

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.embed`."""
        return features.float() if self.proj is None else self.proj(features.float())

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.classify`."""
        return self.classifier(rows)[..., 0]


class Compact(TokenHead):
    """A small transformer over the answer's rows; the prompt enters through what the model made of it.

    Ours, not published. With the prompt left out, features are cached for training as a row per answer token. A row
    describes the position before its token was read; unless the head is causal, a token is judged by its own row and
    the next one, whose position has read it. The newest token has no next row yet: in training some are hidden too.
    """

    options: ClassVar[dict[str, Option]] = {
        "head_dim": Option(96, 1),
        "num_inner": Option(256, 1),
        **ENCODER_OPTIONS,
        "n_heads": Option(4, 1, 1024),
        "reads_prompt": Option(False),
    }

    def __init__(
        self,
        num_features: int,
        head_dim: int = 96,
        num_inner: int = 256,
        n_layers: int = 2,
        n_heads: int = 4,
        dropout: float = 0.1,
        is_causal: bool = False,
        reads_prompt: bool = False,
    ) -> None:
        super().__init__()
        self.is_causal, self.reads_prompt = is_causal, reads_prompt
        self.proj = projection(num_features, head_dim, dropout)
        self.transformer_encoder = make_encoder(head_dim, n_heads, n_layers, dropout, num_inner)
        self.classifier = nn.Linear(head_dim if is_causal else 2 * head_dim, 1)

    @property
    def encoder(self) -> nn.TransformerEncoder:
        """What looks at all rows together."""
        return self.transformer_encoder

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.embed`."""
        return self.proj(features.float())

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """See `TokenHead.classify`: neighbouring rows (..., T, d), or one row (d,), which then is the newest."""
        if self.is_causal:
            return self.classifier(rows)[..., 0]
        following = torch.zeros_like(rows)
        if rows.dim() > 1:
            following[..., :-1, :] = rows[..., 1:, :]
        if self.training:
            following = following * (torch.rand(rows.shape[:-1], device=rows.device) > HIDDEN)[..., None]
        return self.classifier(torch.cat([rows, following], dim=-1))[..., 0]

    def forward(self, features: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """See `TokenHead.forward`; padding is no next row."""
        rows = run_encoder(self.encoder, self.embed(features), is_real, self.is_causal)
        return self.classify(rows if is_real is None else rows * is_real[..., None])
