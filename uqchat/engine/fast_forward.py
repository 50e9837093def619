"""Our own forward for models of the Llama family: fewer and larger products than the model's code. Knows no estimator.

RMSNorm, rotary positions by the model's own module (so in every variant of scaling), grouped-query attention and a
gated MLP, with optional biases and query and key norms: Llama, Mistral, Qwen 2 to 3, SmolLM. It keeps rows, gives
signals and applies adapters as `BatchedForward` does, over the same weights. It is used where a check at load time
finds that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from uqchat.engine.adapters import AdapterSet, scaled
from uqchat.engine.cache import Place
from uqchat.engine.capture import Capture, new_window
from uqchat.engine.fast_attention import attend, fold_mask
from uqchat.engine.fast_weights import Block, FastWeights, Projection, can_copy
from uqchat.engine.forward import BatchedForward, Mask
from uqchat.engine.fused_deltas import FusedPlans
from uqchat.engine.stretches import EVERY, WHOLE, Rows, Stretch, Stretches
from uqchat.four_bit import BYTES_ON_GRID

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, (B, T, 1, D)
Masks = dict[str, Tensor | None]  # by kind of attention


@dataclass(frozen=True, slots=True)
class _Part:
    """What the rows of one stretch need in every block."""

    stretch: Stretch
    rotation: Rotation
    masks: Masks
    place: Place
    answer_masks: Masks


@dataclass(slots=True)
class _Run:
    """What all rows of one forward need."""

    rotation: Rotation
    masks: Masks
    place: Place
    answer_masks: Masks = field(default_factory=dict)

    def part(self, stretch: Stretch) -> _Part:
        """For the rows of a stretch."""
        rows = stretch.rows
        if rows is EVERY:
            return _Part(stretch, self.rotation, self.masks, self.place, self.answer_masks)
        cos, sin = self.rotation
        return _Part(stretch, (cos[rows], sin[rows]), self.masks_of(rows), self.place.part(rows), self.answer_masks)

    def masks_of(self, rows: Rows) -> Masks:
        """The masks of some rows; one that holds for all stays as it is."""
        return {kind: mask if mask is None or len(mask) == 1 else mask[rows] for kind, mask in self.masks.items()}


class FastForward(BatchedForward):
    """See `Forward`.

    Args:
        is_packed: keep a second, packed copy of the weights, and one in 4 bits of those on 16 levels; None: where the
            CPU gains by it and has memory to spare, for both or for the smaller.

    Raises:
        ValueError: the model is not of the family; the text is the reason.
    """

    def __init__(self, model: PreTrainedModel, is_packed: bool | None = None) -> None:
        super().__init__(model)
        self.is_packed = can_copy(model, model.dtype.itemsize) if is_packed is None else is_packed
        has_grid = self.is_packed or (is_packed is None and can_copy(model, BYTES_ON_GRID))
        self.weights = FastWeights(model, self.is_packed, has_grid)
        products = self.weights.projections
        blocks = {part.name: i // 4 for i, product in enumerate(products) for part in product.parts}
        alone = frozenset(product.name for product in products if len(product.parts) == 1)
        plans = FusedPlans([product.parts for product in products], self.is_packed)
        self._planned = Stretches(plans, blocks, alone)
        self._stretches: Sequence[Stretch] = WHOLE

    @contextmanager
    def adapted(
        self, adapters: AdapterSet, names: Sequence[str | None], leaders: Sequence[int] | None = None
    ) -> Iterator[None]:
        """See `Forward.adapted`; a voter's row enters at the first block that its adapter changes."""
        self._stretches = self._planned.of(adapters, names, leaders)
        try:
            yield
        finally:
            self._stretches = WHOLE

    def _run(
        self, input_ids: Tensor, positions: Tensor, mask: Mask, keep: int | Tensor, capture: Capture | None
    ) -> Tensor:
        weights, final = self.weights, len(self.weights.blocks)
        if input_ids.shape[1] > 1:  # a prompt; a check at every step would cost time
            weights.refresh()
        answers = self._stretches[-1].answers  # the last stretch holds all rows
        run = _Run(
            self._rotation(positions),
            {kind: self._additive(each) for kind, each in _by_kind(mask).items()},
            self.cache.place,
        )
        if capture is not None:
            capture.only(answers, len(input_ids))
            capture.input_ids = input_ids[answers, -capture.rows :]
            capture.window = new_window(self.model, capture)
            run.answer_masks = run.masks_of(answers)
        x = input_ids.new_empty(0)
        for stretch, stop in zip(self._stretches, [*(s.start for s in self._stretches[1:]), final], strict=True):
            # (B, T, size) of the stretch's rows
            x = weights.embedding(input_ids[stretch.rows]) if stretch.entering is None else x[stretch.entering]
            part = run.part(stretch)
            self.cache.place = part.place
            for index in range(stretch.start, stop):
                x = self._through(index, x, part, capture)
        if capture is not None and final in capture.signals.hidden_layers:
            x = weights.norm(x)
            _keep(capture, final, x[answers])
            x = _kept(x, keep)
        else:
            x = weights.norm(_kept(x, keep))
        return self._project(weights.head, x, stretch)

    def _through(self, index: int, x: Tensor, part: _Part, capture: Capture | None) -> Tensor:
        """One block."""
        block, stretch = self.weights.blocks[index], part.stretch
        _keep(capture, index, x[stretch.answers])
        x = x + self._attention(index, block, x, part, capture)
        gate, up = self._project(block.gate_up, block.before_mlp(x), stretch).chunk(2, dim=-1)
        return x + self._project(block.down, block.activation(gate) * up, stretch)

    def _attention(self, index: int, block: Block, x: Tensor, part: _Part, capture: Capture | None) -> Tensor:
        weights, (batch, length, _) = self.weights, x.shape
        heads, kv_heads = weights.num_heads, weights.num_kv_heads
        states = self._project(block.qkv, block.before_attention(x), part.stretch)
        states = states.view(batch, length, -1, weights.head_dim)
        if block.query_norm is None or block.key_norm is None:
            turned = _rotated(states[:, :, : heads + kv_heads], part.rotation)
            query, key = turned[:, :, :heads], turned[:, :, heads:]
        else:
            query = _rotated(block.query_norm(states[:, :, :heads]), part.rotation)
            key = _rotated(block.key_norm(states[:, :, heads : heads + kv_heads]), part.rotation)
        value = states[:, :, heads + kv_heads :]
        keys, values = self.cache.layers[index].update(key.transpose(1, 2), value.transpose(1, 2))
        window = None if capture is None else capture.window
        needs_lse = window is not None and window.rows > 1 and window.is_wanted(index)
        out, lse = attend(query, keys, values, part.masks.get(block.kind), weights.scale, needs_lse)
        if window is not None and window.is_wanted(index):
            own = part.stretch.answers
            lse = lse if lse is None else lse[own]
            # the last rows of the mask are those of the last head of a group, as of any
            window.record(
                index, query[own].transpose(1, 2), keys[own], lse, part.answer_masks[block.kind], weights.scale
            )
        return self._project(block.out, out, part.stretch)

    def _project(self, projection: Projection, x: Tensor, stretch: Stretch) -> Tensor:
        """x: (B, T, in) -> (B, T, out), with what each row's adapter adds."""
        factors = stretch.scales.get(projection.name)
        if factors is not None:
            x = scaled(projection.name, x, factors)
        y = projection(x.flatten(0, 1)).view(*x.shape[:2], -1)
        deltas = stretch.deltas.get(projection.name)
        if deltas is not None:
            deltas.add_to(x, y)
        return y

    def _rotation(self, positions: Tensor) -> Rotation:
        cos, sin = self.weights.rotary(self.weights.embedding.weight, positions)  # (B, T, D), in the model's dtype
        half = sin.shape[-1] // 2
        return cos[:, :, None], torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)[:, :, None]

    def _additive(self, mask: Tensor | None) -> Tensor | None:
        """A mask of what may be seen as what is added to scores, for all heads of a group."""
        if mask is None:
            return None
        added = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return fold_mask(added, self.weights.num_heads // self.weights.num_kv_heads)


def _rotated(states: Tensor, rotation: Rotation) -> Tensor:
    """(B, T, heads, D), each half of D turned into the other (Su et al. 2021, RoFormer, equation 34)."""
    cos, sin = rotation
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, dims=-1), sin)


def _by_kind(mask: Mask) -> dict[str, Tensor | None]:
    return mask if isinstance(mask, dict) else dict.fromkeys(("full_attention", "sliding_attention"), mask)


def _keep(capture: Capture | None, layer: int, x: Tensor) -> None:
    if capture is not None and layer in capture.signals.hidden_layers:
        capture.hidden[layer] = x[:, -capture.rows :]


def _kept(x: Tensor, keep: int | Tensor) -> Tensor:
    return x[:, -keep:] if isinstance(keep, int) else x[:, keep]
