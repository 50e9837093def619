"""Gives a model's weights memory of their own. Knows modules and parameters, no file and no kind of model."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn


def own_memory(model: nn.Module) -> None:
    """Copy weights that are views of a file, which may be paged out or replaced.

    Tensors of one name in modules side by side (the weights of q_proj, k_proj, v_proj; their biases) come to lie one
    after another in one storage, as `engine.fast_weights.fuse` leaves them, which then has nothing to move. Shapes,
    values and what is tied to what stay.
    """
    groups: dict[tuple[str, str, torch.dtype], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        *path, _, tensor = ("", *name.split("."))
        groups[".".join(path), tensor, parameter.dtype].append(parameter)
    for parameters in groups.values():
        room = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, part in zip(parameters, room.split([p.numel() for p in parameters]), strict=True):
            parameter.data = part.view(parameter.shape).copy_(parameter.detach())
