"""Puts configuration, weights and language model together to a head that can score. Knows no file format.

Nothing of a language model is changed, and nothing is trusted: names, shapes and values are checked before use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from uqchat.errors import InputError
from uqchat.features import FeatureSet, make_features
from uqchat.features_base import ModelShape
from uqchat.heads.base import ClaimHead, HeadLevel, TokenHead
from uqchat.heads.config import HeadConfig
from uqchat.heads.modules import make_head
from uqchat.origin import ArtifactError, Origin
from uqchat.types import Signals

# The weight whose last dimension is F, the numbers per row, by the first name that is there.
FIRST_WEIGHTS = ("proj.0.weight", "layers.0.weight", "classifier.weight", "classifier.0.weight")
MAX_NAMED = 3  # names of weights that an error lists


class HeadError(ArtifactError):
    """A head cannot be read, or does not fit the language model."""


@dataclass(frozen=True)
class UncertaintyHead:
    """A head bound to a language model, in eval mode, float32, on the model's device."""

    config: HeadConfig
    module: TokenHead | ClaimHead
    features: FeatureSet
    shape: ModelShape
    """Of the language model."""
    source: str = ""
    """Folder or Hub id it came from."""
    info: Origin | None = None
    """Where it comes from; None when it does not say."""
    notes: tuple[str, ...] = ()
    """What a reader should know, a sentence each."""

    @property
    def level(self) -> HeadLevel:
        """Whether it scores tokens or claims."""
        return self.module.level

    @property
    def needs(self) -> Signals:
        """What each step must carry; a published head that looks at all rows reads the prompt's too."""
        needs, module = self.features.needs, self.module
        return replace(needs, prompt_rows=needs.prompt_rows or (module.encoder is not None and module.reads_prompt))

    @property
    def is_revising(self) -> bool:
        """Whether a token's score still changes as the answer grows."""
        return self.module.encoder is not None and not self.module.is_causal

    @property
    def num_parameters(self) -> int:
        """Of the head alone."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def assemble(
    config: HeadConfig,
    weights: Mapping[str, torch.Tensor],
    model: Any,
    *,
    source: str = "",
    info: Origin | None = None,
    notes: tuple[str, ...] = (),
) -> UncertaintyHead:
    """A head from its configuration and weights.

    Args:
        weights: by name, floating point; not kept.
        model: a transformers model, or its `ModelShape` where only the head itself is wanted.

    Raises:
        HeadError: names or shapes of weights differ from what the configuration says, the head's F is not what model
            and configuration give (both are named), or a weight is not finite.
        InputError: the configuration is impossible.
    """
    features = make_features(config.extractors, model, config.layout, config.hidden_index)
    module = _empty_head(config, weights, features)
    _check_names(weights, module.state_dict())
    width = _width_of(weights)
    if width != features.width:
        raise HeadError(
            f"This head does not fit the model: its weights read F = {width:,} numbers per token, the model with the"
            f" head's configuration gives F = {features.width:,} ({features.describe()}; {_shape(model)})."
            " Load the base model that it was trained for."
        )
    _check_values(weights, module.state_dict())
    copied = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in weights.items()}
    module.load_state_dict(copied, strict=True, assign=True)
    shape = model if isinstance(model, ModelShape) else ModelShape.of(model)
    module.requires_grad_(False).eval().to("cpu" if model is shape else model.device)
    return UncertaintyHead(config, module, features, shape, source, info, (*notes, *features.notes))


def _empty_head(config: HeadConfig, weights: Mapping[str, torch.Tensor], features: FeatureSet) -> TokenHead | ClaimHead:
    """The module without memory for its weights, for as many features as the weights say."""
    has_input_norm = weights.get("proj.0.weight", torch.empty(0, 0)).dim() == 1
    try:
        with torch.device("meta"):
            return make_head(config.head_type, _width_of(weights) or features.width, config.options, has_input_norm)
    except InputError as error:
        raise HeadError(str(error)) from error


def _width_of(weights: Mapping[str, torch.Tensor]) -> int:
    """F as the weights have it; 0 when they have none of the names."""
    found = next((weights[name] for name in FIRST_WEIGHTS if name in weights), None)
    return found.shape[-1] if found is not None and found.dim() else 0


def _check_names(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    parts = [f"{kind} {_listed(names)}" for kind, names in (("missing", missing), ("unexpected", extra)) if names]
    if parts:
        raise HeadError(f"The weights are not those of this type of head: {'; '.join(parts)}.")


def _check_values(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise HeadError(
                f"The weight {name} has the shape {tuple(tensor.shape)}; the configuration asks for"
                f" {tuple(expected[name].shape)}."
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise HeadError(f"The weight {name} holds values that are no finite numbers: the file is damaged.")


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _shape(model: Any) -> str:
    return str(model if isinstance(model, ModelShape) else ModelShape.of(model))
