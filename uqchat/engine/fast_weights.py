"""A Llama-shaped model's weights as our own forward reads them: layers with one input fused into one product.

The fused tensors are the model's own storage: its parameters become views of them, so the model works as before and
nothing is held twice. Where a CPU has memory to spare, a second copy in the order of its kernels is kept, and one in 4
bits where the weights lie on such a grid. Knows no cache and no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from uqchat.engine.fused_deltas import Part
from uqchat.engine.memory import free_memory
from uqchat.engine.products import FUSED_TENSORS, Product, product_of

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
PACKED_SHARE = 1 / 8  # of the free memory, that a packed copy of the weights may take
Named = Sequence[tuple[str, nn.Module]]


class Projection:
    """Linear layers with the same input as one product; layers of a class unknown here are called.

    Args:
        layers: (name in the model, module), in the order of the output.
        is_packed: keep a second copy of the weights in the order that the CPU's kernels read fastest.
        has_grid: keep a copy in 4 bits where the weights lie on 16 levels.
    """

    def __init__(self, layers: Named, is_packed: bool = False, has_grid: bool = False) -> None:
        self.layers = [layer for _, layer in layers]
        sizes = [layer.out_features for layer in self.layers]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.parts = tuple(
            Part(name, end - size, end) for (name, _), size, end in zip(layers, sizes, ends, strict=True)
        )
        self.name = self.parts[0].name
        self.fused = _fusible(self.layers)
        self._copies = (is_packed, has_grid)
        self.product: Product = self._call_layers
        self._stamps: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the weights anew if the model's have been moved or, where a copy is kept, changed since."""
        own = {name: [getattr(layer, name) for layer in self.layers] for name in self.fused}
        stamps = [self._stamp(tensor) for tensors in own.values() for tensor in tensors]
        if stamps == self._stamps:
            return
        fused = {name: fuse(tensors) for name, tensors in own.items()}
        self._stamps = [self._stamp(tensor) for tensors in own.values() for tensor in tensors]
        if fused:
            self.product = product_of(fused, *self._copies)

    def _stamp(self, tensor: Tensor) -> tuple[int, int]:
        return tensor.data_ptr(), tensor._version if any(self._copies) and not tensor.is_inference() else 0

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out), a new tensor."""
        return self.product(x)

    def _call_layers(self, x: Tensor) -> Tensor:
        outputs = [layer(x) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def can_copy(model: PreTrainedModel, bytes_each: float) -> bool:
    """Whether this machine has packed kernels for the model, and memory to spare for so many more bytes a weight."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if model.dtype not in (torch.float32, torch.bfloat16):
        return False
    if model.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    layers = [module for module in model.modules() if type(module) in FUSED_TENSORS]
    size = sum(layer.in_features * layer.out_features * bytes_each for layer in layers)
    return 0 < size <= free_memory(model.device) * PACKED_SHARE


def fuse(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor that holds the others one after another along their first dimension; they become views of it.

    Tensors that lie so already, from an earlier call, are not moved.
    """
    if len(tensors) == 1:
        return tensors[0].detach()
    first = tensors[0].detach()
    shape = (sum(len(t) for t in tensors), *first.shape[1:])
    if _lie_in_a_row(tensors):
        return first.as_strided(shape, first.stride())
    with torch.inference_mode(False), torch.no_grad():
        fused = torch.cat([t.detach() for t in tensors])
        start = 0
        for tensor in tensors:
            tensor.data = fused[start : start + len(tensor)]
            start += len(tensor)
    return fused


def _lie_in_a_row(tensors: Sequence[Tensor]) -> bool:
    end = tensors[0].data_ptr()
    for tensor in tensors:
        is_next = tensor.data_ptr() == end and tensor.is_contiguous()
        if not is_next or tensor.untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr():
            return False
        end += tensor.nbytes
    return True


def _fusible(layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """Names of the tensors of these layers that can be fused; empty where the layers are to be called."""
    first, names = layers[0], FUSED_TENSORS.get(type(layers[0]), ())
    has_bias = bool(names) and first.bias is not None
    for layer in layers:
        if type(layer) is not type(first) or not names or (layer.bias is not None) != has_bias:
            return ()
        for name in names:
            own, known = getattr(layer, name), getattr(first, name)
            if own.dtype != known.dtype or own.device != known.device:
                return ()
    return (*names, "bias") if has_bias else names


class Norm:
    """Root mean square norm (Zhang and Sennrich 2019, equation 4), float32 inside, rounded before it is weighted.

    The mean of x and -x together is 0 and their variance is the mean of x squared, so torch's one-kernel layer norm of
    both gives it in half the time of its parts.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self.eps = module, module.variance_epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., size), in its own dtype."""
        size = x.shape[-1]
        both = torch.cat((x, -x), dim=-1)
        return F.layer_norm(both, (2 * size,), None, None, self.eps)[..., :size] * self.module.weight


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder block."""

    kind: str  # "full_attention" or "sliding_attention"
    before_attention: Norm
    qkv: Projection
    query_norm: Norm | None
    key_norm: Norm | None
    out: Projection
    before_mlp: Norm
    gate_up: Projection
    down: Projection
    activation: nn.Module


class FastWeights:
    """All weights of one model, read where the model keeps them.

    Args:
        is_packed, has_grid: what copies of plain weights are kept, see `Projection`.

    Raises:
        ValueError: the model is of another shape; the text is the reason.
    """

    def __init__(self, model: PreTrainedModel, is_packed: bool = False, has_grid: bool = False) -> None:
        kind = type(model).__name__
        if kind not in FAMILY:
            raise ValueError(f"{kind} is not one of {', '.join(FAMILY)}")
        config, decoder = model.config, model.model
        self.embedding = decoder.embed_tokens
        self.rotary = decoder.rotary_emb
        self.head_dim = decoder.layers[0].self_attn.head_dim
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = decoder.layers[0].self_attn.scaling
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(decoder.layers)
        blocks = zip(decoder.layers, kinds, strict=True)
        copies = (is_packed, has_grid)
        self.blocks = [_block(f"model.layers.{i}", *each, copies) for i, each in enumerate(blocks)]
        self.norm = Norm(decoder.norm)
        self.head = Projection([("lm_head", model.lm_head)], *copies)

    @property
    def projections(self) -> list[Projection]:
        """Every product of a forward, in order."""
        blocks = [p for block in self.blocks for p in (block.qkv, block.out, block.gate_up, block.down)]
        return [*blocks, self.head]

    def refresh(self) -> None:
        """Follow what has been done to the model's own weights."""
        for projection in self.projections:
            projection.refresh()


def _block(name: str, layer: nn.Module, kind: str, copies: tuple[bool, bool]) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
    unknown = {child for child, _ in attention.named_children()} - known
    if unknown:
        raise ValueError(f"its attention has a part of an unknown kind: {', '.join(sorted(unknown))}")

    def product(module: nn.Module, where: str, *parts: str) -> Projection:
        return Projection([(f"{name}.{where}.{part}", getattr(module, part)) for part in parts], *copies)

    return Block(
        kind,
        Norm(layer.input_layernorm),
        product(attention, "self_attn", "q_proj", "k_proj", "v_proj"),
        Norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        Norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        product(attention, "self_attn", "o_proj"),
        Norm(layer.post_attention_layernorm),
        product(mlp, "mlp", "gate_proj", "up_proj"),
        product(mlp, "mlp", "down_proj"),
        mlp.act_fn,
    )
