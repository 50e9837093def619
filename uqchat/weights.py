"""How large a model's weights are and whether its files are whole, read from headers; how much memory is free.

Knows file formats (safetensors, GGUF) and this machine, not models.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import psutil
import torch

from uqchat.errors import ModelError

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CGROUP = Path("/sys/fs/cgroup")
# One file, or the index of several; safetensors before PyTorch's.
LAYOUTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@dataclass(frozen=True, slots=True)
class Weights:
    """`parameters` in floating-point tensors, `other_bytes` in all others (already quantised ones)."""

    parameters: int
    other_bytes: int = 0
    dtypes: frozenset[str] = frozenset()  # of the floating-point tensors, as safetensors writes them

    def bytes_as(self, bytes_per_parameter: float) -> int:
        """Memory of the loaded weights."""
        return int(self.parameters * bytes_per_parameter) + self.other_bytes


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors before PyTorch's. Raises ModelError when one is missing."""
    for single, index in LAYOUTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _sharded(folder, index)
    raise ModelError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin is there.")


def _sharded(folder: Path, index: str) -> list[Path]:
    names = shard_names(folder / index)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files of {folder} are missing: {shown}. Download or copy them."
        )
    return [folder / name for name in names]


def shard_names(index: Path) -> list[str]:
    """File names that an index of sharded weights names. Raises ModelError when it is broken."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is broken. Download or copy it again.") from error
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise ModelError(f"{index} is broken: it names no plain files. Download or copy it again.")
    return names


def read_safetensors(paths: Iterable[Path]) -> Weights:
    """Sizes of all tensors of a model's safetensors files.

    Raises:
        ModelError: a header that is not one, or a file shorter than its header says.
    """
    parameters, other, dtypes = 0, 0, set()
    for path in paths:
        for kind, shape, (start, end) in _safetensors_header(path):
            if kind in FLOATS:
                parameters += math.prod(shape)
                dtypes.add(kind)
            else:
                other += end - start
    return Weights(parameters, other, frozenset(dtypes))


def _safetensors_header(path: Path) -> list[tuple[str, list[int], list[int]]]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:  # the format's own limit
                raise ValueError("no header")
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        entries = [(entry["dtype"], entry["shape"], entry["data_offsets"]) for entry in header.values()]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a safetensors file. Download or copy it again.") from error
    if 8 + length + max((end for _, _, (_, end) in entries), default=size) > size:
        raise ModelError(f"{path} is cut off: it has {size:,} bytes, fewer than it says. Download or copy it again.")
    return entries


_SIMPLE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_gguf(path: Path) -> Weights:
    """The number of parameters of a GGUF file, without reading its vocabulary or weights.

    Raises:
        ModelError: not a GGUF file, an unknown version, or cut off.
    """
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            tensors, alignment = _gguf_tensors(file)
            data = math.ceil(file.tell() / alignment) * alignment
        ends, parameters = [0], 0
        for shape, kind, offset in tensors:
            per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            ends.append(offset + math.prod(shape) // per_block * block_bytes)
            parameters += math.prod(shape)
    except (struct.error, KeyError, ValueError, MemoryError, OverflowError) as error:
        raise ModelError(f"{path} is not a GGUF file that can be read ({error}). Download it again.") from error
    if not tensors or data + max(ends) > size:
        raise ModelError(f"{path} is cut off: it has {size:,} bytes, fewer than it says. Download or copy it again.")
    return Weights(parameters)


def _gguf_tensors(file: BinaryIO) -> tuple[list[tuple[tuple[int, ...], int, int]], int]:
    """(shape, kind, offset) of every tensor, and the alignment of the data."""
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, field_count = _unpack(file, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}, not 2 or 3")
    alignment = 32
    for _ in range(field_count):
        key, (kind,) = _string(file), _unpack(file, "I")
        if key == b"general.alignment":
            (alignment,) = _unpack(file, _SIMPLE[kind])
        else:
            _skip(file, kind)
    tensors = []
    for _ in range(tensor_count):
        _string(file)
        (dimensions,) = _unpack(file, "I")
        shape = _unpack(file, f"{dimensions}Q")
        tensors.append((shape, *_unpack(file, "IQ")))
    return tensors, alignment


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def _string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    if length > 1 << 30:
        raise ValueError("a string longer than a file")
    return file.read(length)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _string(file)
    elif kind == _ARRAY:
        inner, count = _unpack(file, "IQ")
        if inner in _SIMPLE:
            file.seek(count * struct.calcsize("<" + _SIMPLE[inner]), 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        _unpack(file, _SIMPLE[kind])


def free_memory(device: str) -> int:
    """Bytes that a model may still take on `device`; a container's limit counts."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, _container_memory())


def _container_memory() -> int:
    """Free bytes under the limit of this control group (Linux, version 2); a huge number where there is none."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stats = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + int(stats["inactive_file"])  # file pages are given back when needed
    except (OSError, ValueError, KeyError):
        return 1 << 62
