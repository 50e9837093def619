"""What all uncertainty heads share: two contracts, their settings, common parts. Knows no language model and no file.

Names of weights are those of the published checkpoints (llm-uncertainty-head, luh/heads). Every head gives logits,
higher is riskier, in float32. A head works in two stages, so that streaming can keep what does not change: `embed`
reads each row by itself, the rest looks at all rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from uqchat.heads.encoder import run_encoder

HeadLevel = Literal["token", "claim"]


@dataclass(frozen=True, slots=True)
class Option:
    """A setting of a head: its default, and the smallest and largest value; a bool has neither."""

    default: int | float | bool
    low: float = 0
    high: float = 65_536


MLP_OPTIONS = {f"internal_dim{i}": Option(size, 1) for i, size in ((1, 256), (2, 128), (3, 64))}

ENCODER_OPTIONS = {
    "n_layers": Option(2, 1, 64),
    "n_heads": Option(8, 1, 1024),
    "dropout": Option(0.1, 0.0, 1.0),
    "is_causal": Option(False),
    "reads_prompt": Option(True),
}


class TokenHead(nn.Module):
    """One logit per row."""

    level: ClassVar[HeadLevel] = "token"
    options: ClassVar[dict[str, Option]] = {}
    encoder: nn.TransformerEncoder | None = None
    is_causal: bool = False
    reads_prompt: bool = True
    """Whether its encoder looks at the prompt's rows too, as that of the published heads does."""

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """(..., F) to (..., d), each row by itself."""
        return features.float()

    def classify(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., d) after the encoder, if there is one, to logits (...,)."""
        raise NotImplementedError

    def forward(self, features: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of all rows.

        Args:
            features: (B, T, F). is_real: (B, T), False for padding on the right; None: there is none.

        Returns:
            (B, T).
        """
        rows = self.embed(features)
        if self.encoder is not None:
            rows = run_encoder(self.encoder, rows, is_real, self.is_causal)
        return self.classify(rows)


class ClaimHead(nn.Module):
    """One logit per claim, a set of rows."""

    level: ClassVar[HeadLevel] = "claim"
    options: ClassVar[dict[str, Option]] = {}
    encoder: nn.TransformerEncoder | None = None
    is_causal: bool = False
    reads_prompt: bool = True

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """(..., F) to (..., d), each row by itself."""
        return features.float()

    def judge(self, rows: torch.Tensor, claims: torch.Tensor, is_real: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (N,) of claims.

        Args:
            rows: (N, T, d) embedded, one text for each claim. claims: (N, T), True for the claim's rows.
            is_real: (N, T), False for padding.
        """
        raise NotImplementedError

    def forward(
        self,
        features: torch.Tensor,
        claims: Sequence[torch.Tensor],
        is_real: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Logits of every text's claims; a text may have none.

        Args:
            features: (B, T, F). claims: B tensors (n_b, T). is_real: (B, T), False for padding.

        Returns:
            B tensors (n_b,).
        """
        counts = [len(of_text) for of_text in claims]
        owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(features.device)
        if not len(owner):
            return [features.new_zeros(0).float() for _ in counts]
        joined = torch.cat([c for c in claims if len(c)]).bool().to(features.device)
        real = None if is_real is None else is_real[owner]
        return list(self.judge(self.embed(features)[owner], joined, real).split(counts))


def mlp(num_features: int, sizes: tuple[int, int, int]) -> nn.ModuleList:
    first, second, third = sizes
    return nn.ModuleList(
        [
            nn.Linear(num_features, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, third),
            nn.ReLU(),
            nn.Linear(third, 1),
        ]
    )


def projection(num_features: int, size: int, dropout: float, has_input_norm: bool = False) -> nn.Sequential:
    layers = [
        nn.Linear(num_features, 2 * size),
        nn.LayerNorm(2 * size),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(2 * size, size),
        nn.LayerNorm(size),
        nn.GELU(),
    ]
    return nn.Sequential(*([nn.LayerNorm(num_features)] if has_input_norm else []), *layers)


def classifier(size: int, inner: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(size, inner), nn.LayerNorm(inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, 1)
    )
