"""The model's forward under the decode loop: ids in, raw logits out, keys and values kept by place.

Two ways, one interface: `BatchedForward` runs all decoding rows in one forward of any full-attention model;
`SequentialForward` runs row after row with the model's own cache, for architectures whose state cannot be shared.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from uqchat.engine.cache import Place, RowCache


class Forward(Protocol):
    """Places 0..n-1 hold the decoding rows; the row being prefilled sits at place n."""

    is_chunkable: bool
    """Whether a prompt may be read in several calls."""

    def prefill(self, place: int, start: int, ids: Sequence[int], keep: int) -> torch.Tensor:
        """Run ids at positions start..; returns the last `keep` rows of logits, (keep, V)."""

    def decode(self, lengths: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
        """One id, (n,), for each of the first n places, which hold `lengths` positions; returns logits (n, V)."""

    def move(self, source: int, target: int, length: int) -> None:
        """Put the row at `source` to `target`."""

    def release(self) -> None:
        """Free all rows."""


def make_forward(model: PreTrainedModel) -> Forward:
    """The batched forward where every layer is plain causal attention, else the sequential one."""
    return BatchedForward(model) if is_full_attention(model) else SequentialForward(model)


def is_full_attention(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all earlier positions (no sliding window, no recurrent state)."""
    layers = DynamicCache(config=model.config).layers
    names = {type(layer).__name__ for layer in layers}
    return bool(layers) and names == {"DynamicLayer"} and getattr(model, "_supports_sdpa", False)


class BatchedForward:
    """All decoding rows in one forward; base weights are read once per step."""

    is_chunkable = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.cache = RowCache(model.config.get_text_config().num_hidden_layers)

    def prefill(self, place: int, start: int, ids: Sequence[int], keep: int) -> torch.Tensor:
        """See `Forward.prefill`."""
        self.cache.reserve(place + 1, start + len(ids) + 1)
        self.cache.place = Place(place, [start])
        device = self.model.device
        input_ids = torch.tensor([ids], device=device)
        positions = torch.arange(start, start + len(ids), device=device)[None]
        mask = None if start == 0 else self._causal(start, len(ids))
        logits = self._run(input_ids, positions, mask, max(keep, 1))  # 0 would mean all of them
        return logits[0, logits.shape[1] - keep :]

    def decode(self, lengths: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
        """See `Forward.decode`."""
        longest = max(lengths)
        self.cache.reserve(len(lengths), longest + 1)
        positions = torch.tensor(lengths, device=self.model.device)
        is_ragged = min(lengths) != longest
        self.cache.place = Place(0, list(lengths), positions if is_ragged else None)
        mask = None
        if is_ragged:  # (B, 1, 1, longest + 1)
            mask = (torch.arange(longest + 1, device=positions.device) <= positions[:, None])[:, None, None]
        return self._run(ids[:, None], positions[:, None], mask, 1)[:, -1]

    def move(self, source: int, target: int, length: int) -> None:
        """See `Forward.move`."""
        self.cache.move(source, target, length)

    def release(self) -> None:
        """See `Forward.release`."""
        self.cache.release()

    def _causal(self, start: int, length: int) -> torch.Tensor:
        device = self.model.device
        keys = torch.arange(start + length, device=device)
        return (keys <= torch.arange(start, start + length, device=device)[:, None])[None, None]

    def _run(
        self, input_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, keep: int
    ) -> torch.Tensor:
        return self.model(
            input_ids=input_ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits


class SequentialForward:
    """One row at a time with the model's own cache and masks: right for every causal model, slower for many rows."""

    is_chunkable = False  # recurrent layers start a longer input from an empty state

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.caches: dict[int, DynamicCache] = {}
        accepted = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        self._can_keep = "logits_to_keep" in accepted

    def prefill(self, place: int, start: int, ids: Sequence[int], keep: int) -> torch.Tensor:
        """See `Forward.prefill`."""
        self.caches[place] = DynamicCache(config=self.model.config)
        logits = self._run(place, torch.tensor([ids], device=self.model.device), keep)
        return logits[0, logits.shape[1] - keep :]

    def decode(self, lengths: Sequence[int], ids: torch.Tensor) -> torch.Tensor:
        """See `Forward.decode`."""
        return torch.cat([self._run(place, ids[place, None, None], 1)[:, -1] for place in range(len(lengths))])

    def move(self, source: int, target: int, length: int) -> None:
        """See `Forward.move`."""
        self.caches[target] = self.caches.pop(source)

    def release(self) -> None:
        """See `Forward.release`."""
        self.caches.clear()

    def _run(self, place: int, input_ids: torch.Tensor, keep: int) -> torch.Tensor:
        options = {self._cache_name: self.caches[place]} | ({"logits_to_keep": keep} if self._can_keep else {})
        return self.model(input_ids=input_ids, use_cache=True, **options).logits
