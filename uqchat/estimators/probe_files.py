"""Probes on disk: ours, and the two layouts of calibration-tuning. Knows no answer and no engine.

Released classifiers are a Sequential hidden -> 256 -> 128 -> 64 -> 2 on the last layer's state of the last answer
token, class 1 "correct" (Kapoor et al. 2024, arXiv 2406.08391). The plain layout has the keys `0.weight` to `6.bias`;
that with a fitted temperature wraps it: `0.0.weight` to `0.6.bias` and `1.log_temperature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from uqchat.artifact_files import card_text, read_config_json, read_tensors, require, write_artifact
from uqchat.errors import InputError
from uqchat.estimators.probe_parts import PartConfig, Reading, StackedMLP
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin

FORMAT = "uqchat-probe"
RELEASED = "classifier_model.bin"
RELEASED_KEYS = tuple(f"{number}.{name}" for number in (0, 2, 4, 6) for name in ("weight", "bias"))


@dataclass(frozen=True)
class Part:
    """A configuration with its networks."""

    config: PartConfig
    module: StackedMLP


@dataclass(frozen=True)
class ProbeFiles:
    """What a folder holds. Without `tokens` the answer part speaks for the answer up to each token."""

    answer: Part
    tokens: Part | None
    info: Origin


def read_probe(folder: Path, model: Any, *, allow_mismatch: bool = False) -> ProbeFiles:
    """The probe of a folder, ours or a released one.

    Raises:
        ArtifactError: a file is missing or damaged, or the probe was trained for another model.
    """
    if (folder / RELEASED).is_file() and not (folder / "config.json").is_file():
        return read_released(folder / RELEASED, model)
    raw = read_config_json(folder, FORMAT, ("answer", "tokens"))
    info = read_origin(require(raw, "info", dict))
    if not allow_mismatch:
        check_origin(info, model, "probe")
    tensors, size = read_tensors(folder), model.model.config.get_text_config().hidden_size
    answer = _part("answer", require(raw, "answer", dict), tensors, size)
    tokens = _part("tokens", require(raw, "tokens", dict), tensors, size) if raw.get("tokens") is not None else None
    _check_layers([answer, *([tokens] if tokens else [])], model)
    return ProbeFiles(answer, tokens, info)


def write_probe(files: ProbeFiles, folder: Path) -> None:
    """config.json, model.safetensors and a card. Raises ArtifactError when the folder cannot be written."""
    parts = {"answer": files.answer, **({"tokens": files.tokens} if files.tokens else {})}
    settings = {"answer": asdict(files.answer.config), "tokens": asdict(files.tokens.config) if files.tokens else None}
    tensors = {f"{name}.{key}": t for name, part in parts.items() for key, t in part.module.state_dict().items()}
    facts = {f"Reads for {name}": _described(part.config) for name, part in parts.items()}
    facts["Parameters"] = f"{sum(tensor.numel() for tensor in tensors.values()):,}"
    use = "Its score is a logit, higher is riskier: name this folder as an estimator of `uqchat`."
    write_artifact(folder, FORMAT, settings, tensors, files.info, card_text("Probe", facts, files.info, use))


def make_part(config: PartConfig, hidden_size: int, dropout: float = 0.0) -> Part:
    """A part with random weights."""
    return Part(config, StackedMLP(config.width(hidden_size), config.sizes, config.members, dropout))


def _described(config: PartConfig) -> str:
    read = [f"layer {reading.layer}, {reading.position.replace('_', ' ')}" for reading in config.readings]
    read += ["-log p and entropy"] if config.use_confidence else []
    return f"{'; '.join(read)}; {config.members} networks of {list(config.sizes) or 'no'} hidden units"


def _part(name: str, raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], hidden_size: int) -> Part:
    try:
        readings = tuple(Reading(**entry) for entry in raw["readings"])
        config = PartConfig(**{**raw, "readings": readings, "sizes": tuple(raw["sizes"])})
        part = make_part(config, hidden_size)
    except (TypeError, KeyError, ValueError, InputError) as error:
        raise ArtifactError(f"config.json: `{name}` of the probe cannot be read: {error}") from error
    own = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
    try:
        part.module.load_state_dict({key: tensor.float() for key, tensor in own.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"The weights of `{name}` do not fit the probe's configuration: {reason}") from error
    part.module.requires_grad_(False).eval()
    return part


def _check_layers(parts: list[Part], model: Any) -> None:
    count = model.model.config.get_text_config().num_hidden_layers
    outside = [layer for part in parts for layer in part.config.layers if layer > count]
    if outside:
        raise ArtifactError(f"The probe reads hidden states of layer {outside[0]}; this model has 0 to {count}.")


def read_released(path: Path, model: Any) -> ProbeFiles:
    """A released classifier, either layout. Raises ArtifactError: damaged, of another form or another hidden size."""
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        named = {str(key): tensor.float() for key, tensor in raw.items()}
    except Exception as error:  # a hostile or broken file can make the reader fail in any way
        raise ArtifactError(f"{path.name} cannot be read as plain tensors: it is damaged, or holds code.") from error
    temperature = named.pop("1.log_temperature", torch.zeros(1)).exp().item()
    if all(key.startswith("0.") for key in named) and "0.0.weight" in named:
        named = {key.removeprefix("0."): tensor for key, tensor in named.items()}
    if set(named) != set(RELEASED_KEYS):
        found = ", ".join(sorted(named))[:200]
        raise ArtifactError(f"{path.name} is no released probe: it must hold {', '.join(RELEASED_KEYS)}; got {found}.")
    config = model.model.config.get_text_config()
    if named["0.weight"].shape[-1] != config.hidden_size:
        raise ArtifactError(
            f"{path.name} reads {named['0.weight'].shape[-1]} numbers per token, this model has {config.hidden_size}."
        )
    sizes = tuple(named[f"{number}.weight"].shape[0] for number in (0, 2, 4))
    part = make_part(PartConfig((Reading(config.num_hidden_layers, "last"),), sizes=sizes), config.hidden_size)
    for place, number in enumerate((0, 2, 4, 6)):
        weight, bias = named[f"{number}.weight"], named[f"{number}.bias"]
        if number == 6:  # log odds of class 0, wrong, against class 1, correct
            weight, bias = (weight[:1] - weight[1:]) / temperature, (bias[:1] - bias[1:]) / temperature
        part.module.weights[place].data.copy_(weight[None])
        part.module.biases[place].data.copy_(bias[None])
    part.module.requires_grad_(False).eval()
    return ProbeFiles(part, None, Origin(training_data="calibration-tuning, released"))
