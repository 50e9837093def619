"""Where a model runs and in which number format. Knows no model: only what this machine has and what was asked for."""

from __future__ import annotations

import torch

from uqchat.errors import InputError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def choose_device(device: str | torch.device | None = None) -> str:
    """The device asked for, else the fastest of cuda, mps, cpu.

    Raises:
        InputError: not a device name, or this machine does not have it.
    """
    available = [kind for kind, has_it in _devices().items() if has_it]
    if not device:
        return available[0]
    name = str(device)
    kind, _, index = name.partition(":")
    if kind not in available or (index and not _has_index(kind, index)):
        raise InputError(f"Device {name!r} is not available; this machine has: {', '.join(available)}.")
    return name


def _devices() -> dict[str, bool]:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def _has_index(kind: str, index: str) -> bool:
    count = torch.cuda.device_count() if kind == "cuda" else 1
    return index.isdigit() and int(index) < count


def choose_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    """The dtype asked for, else the one that is fast on `device`.

    Raises:
        InputError: not one of float32, bfloat16, float16 (or fp32, bf16, fp16, or those torch dtypes).
    """
    if not dtype:
        return _default_dtype(device.partition(":")[0])
    name = str(dtype).removeprefix("torch.").lower()
    if name not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _default_dtype(kind: str) -> torch.dtype:
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "mps":
        return torch.float16
    # Measured: bfloat16 halves the time per token where the CPU multiplies it natively; elsewhere it is emulated.
    capabilities = torch.cpu.get_capabilities()
    is_native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return torch.bfloat16 if is_native else torch.float32
