"""How much memory keys and values may take, and whether a request can ever fit. Allocates nothing."""

from __future__ import annotations

import psutil
import torch

from uqchat.engine.backend import Request
from uqchat.engine.forward import Forward
from uqchat.errors import InputError


def free_memory(device: torch.device) -> int:
    """Bytes free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def check_memory(forward: Forward, request: Request, budget: int) -> None:
    """Refuse a request whose keys and values alone exceed the budget.

    Raises:
        InputError: with the memory needed and the memory there is.
    """
    length = len(request.prompt_ids) + len(request.forced_ids) + request.generation.max_new_tokens
    voters = len(request.companions)
    needed = forward.bytes_for(length) * (1 + voters)
    if needed > budget:
        beside = f" and {voters} voters that read them too" if voters else ""
        raise InputError(
            f"Answering needs {_size(needed)} of memory for {length:,} tokens{beside}, but {_size(budget)} are set "
            f"aside. Shorten the conversation{', take fewer voters' if voters else ''} or lower the maximum number of"
            " new tokens."
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
