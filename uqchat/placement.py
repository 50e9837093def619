"""Where a model runs and in which number format. Knows no model: only what this machine has and what was asked for."""

from __future__ import annotations

import importlib.util

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


QUANTIZATIONS = ("int8", "bnb-8bit", "bnb-4bit")


def check_quantization(quantization: str | None, device: str, is_gguf: bool = False) -> str | None:
    """The quantization asked for, if it works here; empty is none.

    Raises:
        InputError: unknown, or not available on this device, for this file, or without a package.
    """
    if not quantization:
        return None
    if quantization not in QUANTIZATIONS:
        raise InputError(
            f"quantization {quantization!r} is not known; choose none or one of {', '.join(QUANTIZATIONS)}."
        )
    kind = device.partition(":")[0]
    if quantization == "int8":
        if kind != "cpu":
            raise InputError(
                f"int8 runs on the CPU only, not on {device}; choose bnb-8bit or bnb-4bit on a GPU, or none."
            )
        return quantization
    if is_gguf:
        raise InputError(f"{quantization} cannot be applied to a GGUF file; choose int8 (on the CPU) or none.")
    if kind == "mps":
        raise InputError(f"{quantization} does not run on {device}; choose none there, or int8 with device cpu.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"{quantization} needs the package bitsandbytes. Install it with: pip install bitsandbytes")
    return quantization


def bytes_per_parameter(dtype: torch.dtype, quantization: str | None) -> float:
    """Memory of one weight, scales and unquantised layers counted roughly."""
    return {"int8": 1.2, "bnb-8bit": 1.2, "bnb-4bit": 0.7}.get(quantization or "", float(dtype.itemsize))
