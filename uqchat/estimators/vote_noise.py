"""Voters that need no training: the base with seeded noise on chosen weights. Knows no file and no step.

Voter i changes the weight W of a layer by `weight_noise * std(W) * (sqrt(alpha) own_i + sqrt(1 - alpha) shared)`, where
own_i and shared have entries of mean 0 and variance 1: a sketch U V^T / sqrt(rank) of Gaussian factors, or with
`noise="dense"` Gaussian entries of their own. So alpha 1 makes independent voters and alpha 0 equal ones. A layer's
noise depends on the seed and on its name only, not on which other layers are changed.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from uqchat.engine.adapters import FLOATS, Dense, LowRank, linear_size
from uqchat.estimators.vote_settings import VoteSettings, matching_layers

Voter = dict[str, LowRank | Dense]


def noise_voters(model: nn.Module, settings: VoteSettings) -> tuple[Voter, ...]:
    """The change that each voter makes to each layer, float32 on the CPU; no change at all without noise.

    Args:
        model: the base, which may be quantised: only the deviation of its weights is read.

    Raises:
        InputError: no linear layer's name matches; the text names near misses.
    """
    layers = matching_layers(model, settings.param_filter, settings.top)
    if settings.weight_noise == 0:
        return tuple({} for _ in range(settings.n_voters))
    modules = {name: model.get_submodule(name) for name in layers}
    sizes = {name: settings.weight_noise * weight_deviation(module) for name, module in modules.items()}
    return tuple(
        {name: _change(name, linear_size(modules[name]), sizes[name], voter, settings) for name in layers}
        for voter in range(settings.n_voters)
    )


def weight_deviation(layer: nn.Module) -> float:
    """Standard deviation of a linear layer's weight.

    That of a quantised layer, whatever its class, is found from its outputs for the unit vectors.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype in FLOATS and weight.dim() == 2:
        return float(weight.detach().float().std(correction=0))
    tensor = next(t for t in (*layer.parameters(), *layer.buffers()))
    dtype = next((t.dtype for t in (*layer.parameters(), *layer.buffers()) if t.dtype in FLOATS), torch.float32)
    size_in = linear_size(layer)[1]
    with torch.no_grad():
        inputs = torch.cat([torch.zeros(1, size_in), torch.eye(size_in)]).to(tensor.device, dtype)
        outputs = layer(inputs).float()
    return float((outputs[1:] - outputs[:1]).std(correction=0))


def _change(name: str, size: tuple[int, int], scale: float, voter: int, settings: VoteSettings) -> LowRank | Dense:
    """Own and shared noise of one voter in one layer, each with its weight; what has weight 0 is left out."""
    shares = ((f"voter {voter}", settings.alpha), ("shared", 1 - settings.alpha))
    parts = [(_generator(settings.seed, name, who), math.sqrt(share) * scale) for who, share in shares if share]
    if settings.noise == "dense":
        return Dense(sum(torch.randn(*size, generator=generator) * weight for generator, weight in parts))
    rank = settings.rank
    factors = [(torch.randn(rank, size[1], generator=g), torch.randn(size[0], rank, generator=g), w) for g, w in parts]
    a = torch.cat([a for a, _, _ in factors])  # (rank or 2 * rank, in)
    return LowRank(a, torch.cat([b * (weight / math.sqrt(rank)) for _, b, weight in factors], dim=1))


def _generator(seed: int, layer: str, who: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {layer} {who}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
