"""Features of an answer's tokens themselves: how sure the model was, and where in the answer they stand.

Ours; published heads know neither. Both are 0 on prompt rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from uqchat.errors import InputError
from uqchat.features_base import Context, Part
from uqchat.types import Signals


class TokenConfidence:
    """-log p of the row's own token and the entropy of its distribution, nats, raw logits at temperature 1."""

    name: ClassVar[str] = "token_confidence"
    options: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = False
    needs: Signals = Signals(entropy=True)
    width = 2

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> TokenConfidence:
        """See `Extractor.make`."""
        return cls()

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        if part.is_prompt:
            return torch.zeros(part.count, self.width)
        if part.confidence is None:
            raise InputError(f"{self.name} needs the log-probability and the entropy of every token.")
        return part.confidence


class TokenPosition:
    """Sine and cosine of the token's number in the answer, at four wavelengths, so that neighbours can be told.

    Source: Vaswani et al. 2017, section 3.5, with wavelengths 4, 8, 32 and 128.
    """

    name: ClassVar[str] = "token_position"
    options: ClassVar[tuple[str, ...]] = ()
    takes_anything: ClassVar[bool] = False
    needs: Signals = Signals()
    wavelengths: ClassVar[tuple[int, ...]] = (4, 8, 32, 128)
    width = 8

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> TokenPosition:
        """See `Extractor.make`."""
        return cls()

    def rows(self, part: Part) -> torch.Tensor:
        """See `Extractor.rows`."""
        if part.is_prompt:
            return torch.zeros(part.count, self.width)
        number = torch.arange(part.count) + part.first - (part.prompt_length - 1)
        angle = number[:, None] * 2 * math.pi / torch.tensor(self.wavelengths)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)
