"""Where a trained estimator comes from, and whether it belongs to a language model. Knows no estimator and no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from uqchat.errors import UqchatError
from uqchat.fingerprint import template_hash, weights_fingerprint


class ArtifactError(UqchatError):
    """A trained estimator cannot be found, read or written, or does not fit the language model."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The "info" of every config.json. Published heads name nothing of it; one of ours refuses another base model."""

    base_model: str = ""
    revision: str = ""
    weights_fingerprint: str = ""
    """Of the base model's weights, see `uqchat.fingerprint`."""
    num_layers: int = 0
    hidden_size: int = 0
    chat_template_hash: str = ""
    dtype: str = ""
    """Number format that the base model had in training."""
    training_data: str = ""
    """Data set, its version and split."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Name to number, or to a text that holds an interval too."""
    command: str = ""
    """What made it."""
    seed: int = 0
    commit: str = ""
    """Of the source that made it."""


def origin_of(model: Any, **more: Any) -> Origin:
    """What an estimator trained on this model (as `uqchat.load` returns it) has to say of it.

    Args:
        more: the fields that the model does not tell, such as `training_data`.
    """
    config = model.model.config.get_text_config()
    return Origin(
        base_model=model.name,
        weights_fingerprint=weights_fingerprint(model.model),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        chat_template_hash=template_hash(model.tokenizer),
        dtype=str(model.model.dtype).removeprefix("torch."),
        **more,
    )


def read_origin(raw: Mapping[str, Any]) -> Origin:
    """The "info" of a config.json. Raises ArtifactError on an unknown key or a value of another type."""
    known = {f.name: type(getattr(Origin(), f.name)) for f in fields(Origin)}
    for key, value in raw.items():
        if key not in known:
            raise ArtifactError(f"config.json: `info` has the unknown key {key[:80]!r}. Known: {', '.join(known)}.")
        if not isinstance(value, known[key]):
            kind = known[key].__name__
            raise ArtifactError(f"config.json: `info.{key}` must be of type {kind}; got {str(value)[:80]!r}.")
    return Origin(**raw)


def check_origin(origin: Origin, model: Any, what: str = "estimator") -> None:
    """Refuse a language model that differs from the one that the estimator names.

    Args:
        model: what `uqchat.load` returns, or a transformers model, whose chat template is then not looked at.
        what: a word for the estimator.

    Raises:
        ArtifactError: the text names what differs and both values.
    """
    base, tokenizer = getattr(model, "model", model), getattr(model, "tokenizer", None)
    base = model if tokenizer is None else base
    config = base.config.get_text_config()
    pairs = [
        ("number of layers", origin.num_layers, config.num_hidden_layers),
        ("hidden size", origin.hidden_size, config.hidden_size),
        ("weights' fingerprint", origin.weights_fingerprint, origin.weights_fingerprint and weights_fingerprint(base)),
    ]
    if tokenizer is not None:
        pairs.append(("chat template's hash", origin.chat_template_hash, template_hash(tokenizer)))
    for name, trained, here in pairs:
        if trained and trained != here:
            raise ArtifactError(
                f"This {what} was trained for {origin.base_model or 'another model'}: its {name} is {trained}, this"
                f" model's {here}. Load that model, or pass allow_mismatch=True to try it all the same."
            )
