"""The model's forward under the decode loop: ids in, raw logits out, keys and values kept by place.

Here are two of three ways behind one interface: `BatchedForward` runs all decoding rows in one forward of any model
whose layers attend to keys (all of them or a sliding window); `SequentialForward` runs row after row with the model's
own cache, for architectures whose state cannot be shared. The third, `FastForward`, has a module of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from uqchat.engine.adapters import AdapterSet
from uqchat.engine.cache import KeysAndValues, Place, RowCache
from uqchat.engine.capture import Capture, capturing

Mask = torch.Tensor | dict[str, torch.Tensor | None] | None


class Forward(Protocol):
    """Decoding rows sit at places 0..n-1, rows whose prompt is being read behind them."""

    is_chunkable: bool
    """Whether a prompt may be read in several calls, and a saved prefix be loaded."""

    def prefill(
        self,
        place: int,
        starts: Sequence[int],
        chunks: Sequence[Sequence[int]],
        keeps: Sequence[int],
        capture: Capture | None = None,
    ) -> list[torch.Tensor]:
        """Read a chunk of ids of each row at places `place`, place + 1, ..., at positions from `starts` on.

        Returns:
            For each row the last `keeps` rows of its logits, (keep, V).
        """

    def decode(self, lengths: Sequence[int], ids: torch.Tensor, capture: Capture | None = None) -> torch.Tensor:
        """One id, (n,), for each of the first n places, which hold `lengths` positions; returns logits (n, V)."""

    def adapted(
        self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int] | None = None
    ) -> AbstractContextManager[None]:
        """During a forward inside, row i of it uses the adapter names[i]; None is the plain model.

        Args:
            leaders: of a voter's row, the row whose ids it is given, always; of any other row, its own number.
                Signals are caught of those others only. None: no voters.

        Raises:
            InputError: an unknown name.
        """

    def copy(self, source: int, target: int, length: int) -> None:
        """Put a copy of a row's first `length` positions to another place."""

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange two rows of at most `length` positions."""

    def save(self, place: int, length: int, is_last: bool = False) -> KeysAndValues | None:
        """A row's state, or None where states cannot be used again.

        Args:
            is_last: the only row, and `release` comes next: its storage need not be copied.
        """

    def load(self, place: int, saved: KeysAndValues, length: int, is_whole: bool = False) -> None:
        """Put the first `length` positions of a saved state to a place.

        Args:
            is_whole: these are all its positions, and there is no other row: it may go on behind them, in the saved
                storage itself, which stays as it is up to there.
        """

    def bytes_for(self, length: int) -> int:
        """Memory of one row of so many positions; 0 when unknown."""

    def mend(self, lengths: Sequence[int]) -> None:
        """Put 0 for every NaN and infinity that a broken row left behind.

        Who takes its place later sees those positions masked, but 0 * NaN is NaN.

        Args:
            lengths: positions that the rows at the first places hold, which stay as they are.
        """

    def release(self) -> None:
        """Free all rows."""


def is_batchable(model: PreTrainedModel) -> bool:
    """Whether every layer is causal attention over all keys or over a sliding window, through torch's sdpa."""
    names = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return (
        bool(names)
        and names <= {"DynamicLayer", "DynamicSlidingWindowLayer"}
        and kinds <= {"full_attention", "sliding_attention"}
        and model.config.get_text_config()._attn_implementation == "sdpa"
    )


def cache_argument(model: PreTrainedModel) -> str:
    """What this model's forward calls its cache: transformers has had three names for it, one for all since 5.24."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in ("cache", "cache_params") if name in accepted), "past_key_values")


class BatchedForward:
    """All decoding rows in one forward; base weights are read once per step."""

    is_chunkable = True

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.model = model
        self._cache_name = cache_argument(model)
        self.cache = RowCache(config.num_hidden_layers)
        kinds = getattr(config, "layer_types", None) or ()
        self._is_mixed = "sliding_attention" in kinds  # such models take one mask for each kind of layer
        layers = DynamicCache(config=model.config).layers
        self._sliding = min(
            (layer.sliding_window for layer in layers if hasattr(layer, "sliding_window")), default=None
        )

    def prefill(
        self,
        place: int,
        starts: Sequence[int],
        chunks: Sequence[Sequence[int]],
        keeps: Sequence[int],
        capture: Capture | None = None,
    ) -> list[torch.Tensor]:
        """See `Forward.prefill`. Shorter chunks are filled up on the right, where no row looks."""
        lengths, device = [len(chunk) for chunk in chunks], self.model.device
        width = max(lengths)
        input_ids = torch.tensor([[*chunk, *([0] * (width - len(chunk)))] for chunk in chunks], device=device)
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)  # (B, T)
        self._set_place(place, starts, positions)
        if capture is not None and len(chunks) > 1:
            capture.positions = positions[:, -capture.rows :]
        mask = self._mask(positions, max(starts) + width, is_needed=max(starts) > 0)
        # The positions whose logits any row wants; 0 would mean all of them, so at least one.
        wanted = sorted({i for n, keep in zip(lengths, keeps, strict=True) for i in range(n - keep, n)}) or [width - 1]
        logits = self._run(input_ids, positions, mask, torch.tensor(wanted, device=device), capture)
        first = {i: at for at, i in enumerate(wanted)}
        begins = [first[n - keep] if keep else 0 for n, keep in zip(lengths, keeps, strict=True)]
        return [row[begin : begin + keep] for row, begin, keep in zip(logits, begins, keeps, strict=True)]

    def decode(self, lengths: Sequence[int], ids: torch.Tensor, capture: Capture | None = None) -> torch.Tensor:
        """See `Forward.decode`."""
        positions = torch.tensor(lengths, device=self.model.device)[:, None]
        self._set_place(0, lengths, positions)
        if capture is not None:
            capture.positions = positions
        mask = self._mask(positions, max(lengths) + 1, is_needed=min(lengths) != max(lengths))
        return self._run(ids[:, None], positions, mask, 1, capture)[:, -1]

    def adapted(
        self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int] | None = None
    ) -> AbstractContextManager[None]:
        """See `Forward.adapted`; every row runs through the whole model."""
        return adapters.rows(names)

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Forward.copy`."""
        self.cache.reserve(max(source, target) + 1, length)
        self.cache.copy(source, target, length)

    def swap(self, first: int, second: int, length: int) -> None:
        """See `Forward.swap`."""
        self.cache.reserve(max(first, second) + 1, length)
        self.cache.swap(first, second, length)

    def save(self, place: int, length: int, is_last: bool = False) -> KeysAndValues | None:
        """See `Forward.save`."""
        return self.cache.save(place, length, is_last)

    def load(self, place: int, saved: KeysAndValues, length: int, is_whole: bool = False) -> None:
        """See `Forward.load`."""
        if is_whole and self.cache.adopt(saved):
            return
        self.cache.reserve(place + 1, length)
        self.cache.load(place, saved, length)

    def bytes_for(self, length: int) -> int:
        """See `Forward.bytes_for`."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * config.num_hidden_layers * heads * size * self.model.dtype.itemsize * length

    def mend(self, lengths: Sequence[int]) -> None:
        """See `Forward.mend`."""
        self.cache.mend(lengths)

    def release(self) -> None:
        """See `Forward.release`."""
        self.cache.release()

    def _set_place(self, place: int, starts: Sequence[int], positions: torch.Tensor) -> None:
        self.cache.reserve(place + len(starts), max(starts) + positions.shape[1] + 1)
        self.cache.place = Place(place, list(starts), positions if min(starts) != max(starts) else None)

    def _mask(self, positions: torch.Tensor, total: int, is_needed: bool) -> Mask:
        """What queries at `positions` (B, Q) may see of `total` keys; None where the kernel's own causal mask does."""
        is_sliding = self._sliding is not None and total > self._sliding
        if not is_needed and not is_sliding:
            return None
        distance = positions[:, :, None] - torch.arange(total, device=positions.device)
        full = (distance >= 0)[:, None]  # (B, 1, Q, K)
        if not is_sliding:
            return full if not self._is_mixed else {"full_attention": full, "sliding_attention": full}
        sliding = full & (distance < self._sliding)[:, None]
        return {"full_attention": full, "sliding_attention": sliding} if self._is_mixed else sliding

    def _run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask,
        keep: int | torch.Tensor,
        capture: Capture | None,
    ) -> torch.Tensor:
        with capturing(self.model, capture, is_masked=mask is not None and input_ids.shape[1] > 1) as extra:
            return self.model(
                input_ids=input_ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=True,
                logits_to_keep=keep,
                **{self._cache_name: self.cache},
                **extra,
            ).logits


class SequentialForward:
    """One row at a time with the model's own cache and masks: right for every causal model, slower for many rows."""

    is_chunkable = False  # recurrent layers start a longer input from an empty state

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.caches: dict[int, DynamicCache] = {}
        self._cache_name = cache_argument(model)
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters

    def prefill(
        self,
        place: int,
        starts: Sequence[int],
        chunks: Sequence[Sequence[int]],
        keeps: Sequence[int],
        capture: Capture | None = None,
    ) -> list[torch.Tensor]:
        """See `Forward.prefill`; the one row's whole prompt at once."""
        (chunk,), (keep,) = chunks, keeps
        self.caches[place] = DynamicCache(config=self.model.config)
        logits = self._run(place, torch.tensor([chunk], device=self.model.device), max(keep, 1), capture)
        return [logits[0, logits.shape[1] - keep :]]

    def decode(self, lengths: Sequence[int], ids: torch.Tensor, capture: Capture | None = None) -> torch.Tensor:
        """See `Forward.decode`."""
        parts, hidden = [], []
        for place in range(len(lengths)):
            parts.append(self._run(place, ids[place, None, None], 1, capture)[:, -1])
            hidden.append(dict(capture.hidden) if capture else {})
        if capture is not None:
            capture.hidden = {layer: torch.cat([h[layer] for h in hidden]) for layer in hidden[0]}
            capture.input_ids = ids[:, None]
        return torch.cat(parts)

    def adapted(
        self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int] | None = None
    ) -> AbstractContextManager[None]:
        """See `Forward.adapted`; every row runs through the whole model."""
        return adapters.rows(names)

    def copy(self, source: int, target: int, length: int) -> None:
        """See `Forward.copy`."""
        self.caches[target] = deepcopy(self.caches[source])

    def swap(self, first: int, second: int, length: int) -> None:
        """See `Forward.swap`."""
        old = {place: self.caches.pop(place, None) for place in (first, second)}
        self.caches |= {new: cache for new, cache in ((first, old[second]), (second, old[first])) if cache is not None}

    def save(self, place: int, length: int, is_last: bool = False) -> KeysAndValues | None:
        """See `Forward.save`."""
        return None

    def load(self, place: int, saved: KeysAndValues, length: int, is_whole: bool = False) -> None:
        """See `Forward.load`."""
        raise AssertionError("nothing is ever saved")

    def bytes_for(self, length: int) -> int:
        """See `Forward.bytes_for`."""
        return 0

    def mend(self, lengths: Sequence[int]) -> None:
        """See `Forward.mend`; each row has a cache of its own."""

    def release(self) -> None:
        """See `Forward.release`."""
        self.caches.clear()

    def _run(self, place: int, input_ids: torch.Tensor, keep: int, capture: Capture | None) -> torch.Tensor:
        options = {self._cache_name: self.caches[place]} | ({"logits_to_keep": keep} if self._can_keep else {})
        with capturing(self.model, capture) as extra:
            return self.model(input_ids=input_ids, use_cache=True, **options, **extra).logits
