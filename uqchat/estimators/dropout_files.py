"""Settings of Monte-Carlo dropout, and folders of a LoRA that was trained with dropout. Knows no engine and no step.

config.json has the settings beside "format", "version", "info" and `lora`, which with the tensors is as PEFT writes it.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uqchat.artifact_files import CONFIG, card_text, read_config_json, read_tensors, require, write_artifact
from uqchat.engine.adapters import Adapter, InputScale, LowRank, linear_size
from uqchat.engine.lineup import MAX_ROWS
from uqchat.engine.peft_format import lora_of, peft_of
from uqchat.errors import InputError
from uqchat.estimators.vote_settings import matching_layers
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin

FORMAT = "uqchat-dropout"
MAX_SAMPLES = MAX_ROWS - 1


@dataclass(frozen=True, slots=True)
class DropoutSettings:
    """Settings of Monte-Carlo dropout. Raises InputError on a value that is not allowed, on construction."""

    n_samples: int = 5
    """Rows with a mask of their own, 1 to 15; a single one never disagrees, so its risk is 0."""
    rate: float = 0.1
    """Share of the input features that a mask drops, 0 to below 1; the others are scaled by 1 / (1 - rate)."""
    param_filter: str = "o_proj"
    """Regular expression, searched for in the names of linear layers whose input is masked. Not used with a LoRA."""
    seed: int = 0
    """Of the masks: the same in every answer, so that a row is one function."""

    def __post_init__(self) -> None:
        """Check every value."""
        is_count = isinstance(self.n_samples, int) and not isinstance(self.n_samples, bool)
        if not is_count or not 1 <= self.n_samples <= MAX_SAMPLES:
            raise InputError(f"n_samples of dropout must be 1 to {MAX_SAMPLES}; got {self.n_samples!r}.")
        if not isinstance(self.rate, int | float) or not math.isfinite(self.rate) or not 0 <= self.rate < 1:
            raise InputError(f"rate of dropout must be 0 to below 1; got {self.rate!r}.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed of dropout must be a whole number, 0 or more; got {self.seed!r}.")
        try:
            re.compile(self.param_filter)
        except (re.error, TypeError) as error:
            raise InputError(f"param_filter {self.param_filter!r} is not a regular expression: {error}.") from error


SETTINGS = tuple(field.name for field in fields(DropoutSettings))


@dataclass(frozen=True)
class DropoutFiles:
    """A LoRA with the dropout that its rows get, as a folder holds it."""

    settings: DropoutSettings
    adapter: Adapter
    info: Origin


def mask_of(settings: DropoutSettings, layer: str, size: int, sample: int) -> torch.Tensor:
    """The factors of a row's input features of one layer, (size,): 0 with probability `rate`, else 1 / (1 - rate)."""
    digest = hashlib.sha256(f"{settings.seed} {layer} sample {sample}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    kept = torch.rand(size, generator=generator) >= settings.rate
    return kept.float() / (1 - settings.rate)


def masked_inputs(model: nn.Module, settings: DropoutSettings) -> tuple[dict[str, InputScale], ...]:
    """For every row, the masks of the inputs of the layers that match.

    Raises:
        InputError: no linear layer's name matches; the text names near misses.
    """
    sizes = {
        layer: linear_size(model.get_submodule(layer))[1] for layer in matching_layers(model, settings.param_filter)
    }
    return tuple(
        {layer: InputScale(mask_of(settings, layer, size, sample)) for layer, size in sizes.items()}
        for sample in range(settings.n_samples)
    )


def masked_lora(adapter: Adapter, settings: DropoutSettings) -> tuple[dict[str, LowRank], ...]:
    """For every row the LoRA with its input masked: b @ a @ diag(mask), as PEFT's dropout before lora_A."""
    return tuple(
        {
            layer: LowRank(
                delta.a * mask_of(settings, layer, delta.a.shape[1], sample).to(delta.a), delta.b, delta.scale
            )
            for layer, delta in adapter.deltas.items()
        }
        for sample in range(settings.n_samples)
    )


def read_dropout(folder: Path, model: Any, *, allow_mismatch: bool = False) -> DropoutFiles:
    """The LoRA of a folder.

    Args:
        model: what `uqchat.load` returns. allow_mismatch: whether another base model whose layers fit may be used.

    Raises:
        ArtifactError: a file is missing or damaged, or the LoRA was trained for another model.
        InputError: it is not a plain LoRA, or its layers do not fit the model.
    """
    raw = read_config_json(folder, FORMAT, (*SETTINGS, "lora"))
    info = read_origin(raw["info"])
    if not allow_mismatch:
        check_origin(info, model, "dropout LoRA")
    try:
        settings = DropoutSettings(**{name: raw[name] for name in SETTINGS})
    except (InputError, KeyError) as error:
        raise ArtifactError(f"{CONFIG} of the dropout LoRA cannot be used: {error}") from error
    adapter = lora_of(require(raw, "lora", dict), read_tensors(folder), model.model, "dropout", folder)
    return DropoutFiles(settings, adapter, info)


def write_dropout(files: DropoutFiles, folder: Path) -> None:
    """Write the folder, with a card. Raises ArtifactError when it cannot be written."""
    lora, tensors = peft_of(files.adapter)
    deltas = files.adapter.deltas
    kinds = sorted({layer.rsplit(".", 1)[-1] for layer in deltas})
    facts = {
        "Type": "LoRA with Monte-Carlo dropout before it",
        "Rows": f"{files.settings.n_samples}, each with a mask of its own",
        "Dropout": f"{files.settings.rate:g} of the features that the LoRA reads",
        "LoRA": f"rank {lora['r']} on {', '.join(kinds)}, {len(deltas)} layers",
    }
    use = (
        "Token risk = mutual information between token and mask, divided by ln n."
        ' Use it with `model.answer(question, estimators=["dropout"])`, or give this folder in place of the name.'
    )
    card = card_text("Dropout: does the answer hang on single features?", facts, files.info, use)
    write_artifact(folder, FORMAT, {**asdict(files.settings), "lora": lora}, tensors, files.info, card)
