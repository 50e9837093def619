"""Our own forward for models of the Llama family: fewer and larger products than the model's code. Knows no estimator.

RMSNorm, rotary positions by the model's own module (so in every variant of scaling), grouped-query attention and a
gated MLP, with optional biases and query and key norms: Llama, Mistral, Qwen 2 to 3, SmolLM. It keeps rows, gives
signals and applies adapters as `BatchedForward` does, over the same weights. It is used where a check at load time
finds that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from uqchat.engine.adapters import AdapterSet, scaled
from uqchat.engine.capture import Capture, new_window
from uqchat.engine.fast_attention import attend, fold_mask
from uqchat.engine.fast_weights import Block, FastWeights, Projection, can_copy
from uqchat.engine.forward import BatchedForward, Mask
from uqchat.engine.fused_deltas import FusedDeltas, FusedPlans
from uqchat.errors import InputError
from uqchat.four_bit import BYTES_ON_GRID

Rotation = tuple[Tensor, Tensor]  # cos and signed sin, (B, T, 1, D)


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
        self._plans = FusedPlans([projection.parts for projection in self.weights.projections], self.is_packed)
        self._deltas: dict[str, FusedDeltas] = {}
        self._scales: dict[str, Tensor] = {}  # of inputs, by a product's first layer

    @contextmanager
    def adapted(self, adapters: AdapterSet, names: Sequence[str | None]) -> Iterator[None]:
        """See `Forward.adapted`."""
        self._deltas = self._plans.of(adapters, names)
        self._scales = self._scales_of(adapters, names)
        try:
            yield
        finally:
            self._deltas, self._scales = {}, {}

    def _scales_of(self, adapters: AdapterSet, names: Sequence[str | None]) -> dict[str, Tensor]:
        """By product. Raises InputError where layers that share one would scale its input differently."""
        scales = adapters.scales(names)
        alone = {p.parts[0].name for p in self.weights.projections if len(p.parts) == 1}
        shared = next((layer for layer in scales if layer not in alone), None)
        if shared is not None:
            raise InputError(
                f"Layer {shared!r} shares its input with others here, so it cannot be scaled alone; o_proj and"
                " down_proj have inputs of their own."
            )
        return scales

    def _run(
        self, input_ids: Tensor, positions: Tensor, mask: Mask, keep: int | Tensor, capture: Capture | None
    ) -> Tensor:
        weights = self.weights
        if input_ids.shape[1] > 1:  # a prompt; a check at every step would cost time
            weights.refresh()
        masks = {kind: self._additive(each) for kind, each in _by_kind(mask).items()}
        if capture is not None:
            capture.input_ids = input_ids[:, -capture.rows :]
            capture.window = new_window(self.model, capture)
        x = weights.embedding(input_ids)  # (B, T, size)
        rotation = self._rotation(x, positions)
        for index, block in enumerate(weights.blocks):
            _keep(capture, index, x)
            x = x + self._attention(index, block, x, rotation, masks.get(block.kind), capture)
            x = x + self._mlp(block, x)
        final = len(weights.blocks)
        if capture is not None and final in capture.signals.hidden_layers:
            x = weights.norm(x)
            _keep(capture, final, x)
            x = _kept(x, keep)
        else:
            x = weights.norm(_kept(x, keep))
        return self._project(weights.head, x)

    def _attention(
        self, index: int, block: Block, x: Tensor, rotation: Rotation, mask: Tensor | None, capture: Capture | None
    ) -> Tensor:
        weights, (batch, length, _) = self.weights, x.shape
        heads, kv_heads = weights.num_heads, weights.num_kv_heads
        states = self._project(block.qkv, block.before_attention(x)).view(batch, length, -1, weights.head_dim)
        if block.query_norm is None or block.key_norm is None:
            turned = _rotated(states[:, :, : heads + kv_heads], rotation)
            query, key = turned[:, :, :heads], turned[:, :, heads:]
        else:
            query = _rotated(block.query_norm(states[:, :, :heads]), rotation)
            key = _rotated(block.key_norm(states[:, :, heads : heads + kv_heads]), rotation)
        value = states[:, :, heads + kv_heads :]
        keys, values = self.cache.layers[index].update(key.transpose(1, 2), value.transpose(1, 2))
        window = None if capture is None else capture.window
        needs_lse = window is not None and window.rows > 1 and window.is_wanted(index)
        out, lse = attend(query, keys, values, mask, weights.scale, needs_lse)
        if window is not None:  # its last rows of the mask are those of the last head of a group, as of any
            window.record(index, query.transpose(1, 2), keys, lse, mask, weights.scale)
        return self._project(block.out, out)

    def _mlp(self, block: Block, x: Tensor) -> Tensor:
        gate, up = self._project(block.gate_up, block.before_mlp(x)).chunk(2, dim=-1)
        return self._project(block.down, block.activation(gate) * up)

    def _project(self, projection: Projection, x: Tensor) -> Tensor:
        """x: (B, T, in) -> (B, T, out), with what each row's adapter adds."""
        factors = self._scales.get(projection.name)
        if factors is not None:
            x = scaled(projection.name, x, factors)
        y = projection(x.flatten(0, 1)).view(*x.shape[:2], -1)
        deltas = self._deltas.get(projection.name)
        if deltas is not None:
            deltas.add_to(x, y)
        return y

    def _rotation(self, x: Tensor, positions: Tensor) -> Rotation:
        cos, sin = self.weights.rotary(x, positions)  # (B, T, D)
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
