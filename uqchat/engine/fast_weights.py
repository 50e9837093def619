"""A Llama-shaped model's weights as our own forward reads them: layers with one input fused into one product.

The fused tensors are the model's own storage: its parameters become views of them, so the model works as before and
nothing is held twice. Knows no cache and no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from uqchat.engine.fused_deltas import Part

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
Named = Sequence[tuple[str, nn.Module]]


class Projection:
    """Linear layers with the same input as one product; layers of another class, quantised ones say, are called.

    Args:
        layers: (name in the model, module), in the order of the output.
    """

    def __init__(self, layers: Named) -> None:
        self.layers = [layer for _, layer in layers]
        sizes = [layer.out_features for layer in self.layers]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.parts = tuple(
            Part(name, end - size, end) for (name, _), size, end in zip(layers, sizes, ends, strict=True)
        )
        self.name = self.parts[0].name
        self.weight: Tensor | None = None  # (out, in)
        self.bias: Tensor | None = None
        if _is_plain(self.layers):
            self.weight = fuse([layer.weight for layer in self.layers])
            self.bias = None if self.layers[0].bias is None else fuse([layer.bias for layer in self.layers])

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, in) -> (N, out), a new tensor."""
        if self.weight is not None:
            return F.linear(x, self.weight, self.bias)
        outputs = [layer(x) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def fuse(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor that holds the parameters one after another along their first dimension; they become views of it.

    Parameters that lie so already, from an earlier call, are not moved.
    """
    if len(parameters) == 1:
        return parameters[0].detach()
    first = parameters[0].detach()
    shape = (sum(len(p) for p in parameters), *first.shape[1:])
    if _lie_in_a_row(parameters):
        return first.as_strided(shape, first.stride())
    with torch.inference_mode(False), torch.no_grad():
        fused = torch.cat([p.detach() for p in parameters])
        start = 0
        for parameter in parameters:
            parameter.data = fused[start : start + len(parameter)]
            start += len(parameter)
    return fused


def _lie_in_a_row(parameters: Sequence[Tensor]) -> bool:
    end = parameters[0].data_ptr()
    for parameter in parameters:
        is_next = parameter.data_ptr() == end and parameter.is_contiguous()
        if not is_next or parameter.untyped_storage().data_ptr() != parameters[0].untyped_storage().data_ptr():
            return False
        end += parameter.nbytes
    return True


def _is_plain(layers: Sequence[nn.Module]) -> bool:
    first = layers[0]
    return all(
        type(layer) is nn.Linear
        and layer.weight.dtype == first.weight.dtype
        and layer.weight.device == first.weight.device
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


@dataclass(frozen=True, slots=True)
class Norm:
    """Root mean square norm, in float32 inside."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """x: (..., size), in its own dtype."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


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

    Raises:
        ValueError: the model is of another shape; the text is the reason.
    """

    def __init__(self, model: PreTrainedModel) -> None:
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
        self.blocks = [_block(f"model.layers.{i}", layer, kinds[i]) for i, layer in enumerate(decoder.layers)]
        self.norm = _norm(decoder.norm)
        self.head = Projection([("lm_head", model.lm_head)])

    @property
    def projections(self) -> list[Projection]:
        """Every product of a forward, in order."""
        blocks = [p for block in self.blocks for p in (block.qkv, block.out, block.gate_up, block.down)]
        return [*blocks, self.head]


def _block(name: str, layer: nn.Module, kind: str) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
    unknown = {child for child, _ in attention.named_children()} - known
    if unknown:
        raise ValueError(f"its attention has a part of an unknown kind: {', '.join(sorted(unknown))}")
    return Block(
        kind,
        _norm(layer.input_layernorm),
        Projection([(f"{name}.self_attn.{part}", getattr(attention, part)) for part in ("q_proj", "k_proj", "v_proj")]),
        _norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        _norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        Projection([(f"{name}.self_attn.o_proj", attention.o_proj)]),
        _norm(layer.post_attention_layernorm),
        Projection([(f"{name}.mlp.{part}", getattr(mlp, part)) for part in ("gate_proj", "up_proj")]),
        Projection([(f"{name}.mlp.down_proj", mlp.down_proj)]),
        mlp.act_fn,
    )


def _norm(module: nn.Module) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)
