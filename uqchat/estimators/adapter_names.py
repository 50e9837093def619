"""Names of adapters that say which weights they hold. Knows no estimator."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def name_of_changes(kind: str, deltas: Mapping[str, Any]) -> str:
    """A name that two adapters of a kind share only when their changes are the same, to the last bit.

    Args:
        deltas: dataclasses of tensors and numbers, by layer.
    """
    digest = hashlib.sha256()
    for layer, delta in sorted(deltas.items()):
        digest.update(f"{layer} {type(delta).__name__}".encode())
        for name, value in sorted(vars(delta).items()):
            plain = value.detach().float().cpu().contiguous().numpy().tobytes() if isinstance(value, Tensor) else b""
            digest.update(f" {name} {'' if plain else value}".encode() + plain)
    return f"{kind}-{digest.hexdigest()[:16]}"
