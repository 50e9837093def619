"""Folders of a trained query: our own, and the released calibration-tuning adapters. Knows no engine and no step.

Ours holds config.json and model.safetensors: `lora` in the first and the names in the second are those of PEFT, so that
saved as adapter_config.json and adapter_model.safetensors, PEFT reads them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from uqchat.artifact_files import CONFIG, card_text, read_config_json, read_json, read_tensors, require, write_artifact
from uqchat.engine.adapters import Adapter, LowRank
from uqchat.engine.peft_format import CONFIG as PEFT_CONFIG
from uqchat.engine.peft_format import WEIGHTS as PEFT_WEIGHTS
from uqchat.engine.peft_format import lora_of, peft_of, read_peft_lora
from uqchat.estimators.adapter_names import name_of_changes
from uqchat.estimators.query_format import FORMATS, LAYOUTS, Layout
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin

FORMAT = "uqchat-query"
LEVELS = ("answer", "sentence")
KEYS = ("query", "layout", "level", "temperature", "lora")
TEMPERATURE_FILES = (
    "temperature_model.pt",
    "temperature_model.safetensors",
    "temperature_model.bin",
    "query_temperature_head.bin",
    "temperature_head.bin",
)
RELEASED = (*((PEFT_CONFIG, PEFT_WEIGHTS, name) for name in TEMPERATURE_FILES[:3]), (PEFT_CONFIG, PEFT_WEIGHTS))
"""Files that make up a released adapter, on the Hub or in a folder."""


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """How the query is put and read."""

    query: str = FORMATS[0].name
    """Name of the wording, see `uqchat.estimators.query_format`."""
    layout: Layout = "chat"
    """What stands before the query: the prompt's and the answer's ids, or both as plain text."""
    level: Literal["answer", "sentence"] = "answer"
    """What one reply judges: the whole answer, or the answer up to the end of each sentence."""
    temperature: float = 1.0
    """By which the log odds are divided, above 0."""


@dataclass(frozen=True)
class QueryFiles:
    """A trained query, as a folder holds it."""

    settings: QuerySettings
    adapter: Adapter
    info: Origin


def read_query(folder: Path, model: Any, *, allow_mismatch: bool = False) -> QueryFiles:
    """A folder of ours, or of a released calibration-tuning adapter.

    Args:
        model: what `uqchat.load` returns. allow_mismatch: whether another base model whose layers fit may be used.

    Raises:
        ArtifactError: a file is missing or damaged, or the query was trained for another model.
        InputError: the adapter is not a plain LoRA, or its layers do not fit the model.
    """
    is_released = (folder / PEFT_CONFIG).is_file() and not (folder / CONFIG).is_file()
    files = _read_released(folder, model) if is_released else _read_own(folder, model, allow_mismatch)
    deltas = files.adapter.deltas
    return QueryFiles(files.settings, Adapter(name_of_changes("query", deltas), deltas), files.info)


def _read_own(folder: Path, model: Any, allow_mismatch: bool) -> QueryFiles:
    raw = read_config_json(folder, FORMAT, KEYS)
    origin = read_origin(raw["info"])
    if not allow_mismatch:
        check_origin(origin, model, "query")
    temperature = raw.get("temperature")
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ArtifactError(f"{CONFIG}: `temperature` must be a number above 0; got {str(temperature)[:80]!r}.")
    settings = QuerySettings(
        _one_of(raw, "query", tuple(fmt.name for fmt in FORMATS)),
        _one_of(raw, "layout", LAYOUTS),
        _one_of(raw, "level", LEVELS),
        float(temperature),
    )
    adapter = lora_of(require(raw, "lora", dict), read_tensors(folder), model.model, "query", folder)
    return QueryFiles(settings, adapter, origin)


def _read_released(folder: Path, model: Any) -> QueryFiles:
    """Trained on plain text, so the layout is "text". It names its base, but no weights to compare."""
    adapter = read_peft_lora(folder, model.model, "query", is_calibrated=True)
    base = str(read_json(folder / PEFT_CONFIG).get("base_model_name_or_path") or "")
    return QueryFiles(QuerySettings(layout="text", temperature=_temperature(folder)), adapter, Origin(base_model=base))


def _temperature(folder: Path) -> float:
    """exp(log_temperature) of the file beside a released adapter; 1 where there is none."""
    path = next((folder / name for name in TEMPERATURE_FILES if (folder / name).is_file()), None)
    if path is None:
        return 1.0
    try:
        is_safe = path.suffix == ".safetensors"
        found = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
        value = math.exp(float(found["log_temperature"]))
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path} cannot be read as a temperature: {error}") from error
    except Exception as error:  # a pickle that holds more than tensors is refused with an error of its own
        raise ArtifactError(f"{path} holds more than a tensor and is not read.") from error
    if not 0 < value < math.inf:
        raise ArtifactError(f"{path} holds the temperature {value}; a number above 0 is needed.")
    return value


def _one_of(raw: dict[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    if raw.get(key) not in allowed:
        raise ArtifactError(f"{CONFIG}: `{key}` must be one of {', '.join(allowed)}; got {str(raw.get(key))[:80]!r}.")
    return raw[key]


def write_query(files: QueryFiles, folder: Path) -> None:
    """Write our own folder, with a card. Raises ArtifactError when it cannot be written."""
    lora, tensors = peft_of(files.adapter)
    settings = files.settings
    plain = {key: getattr(settings, key) for key in ("query", "layout", "level", "temperature")}
    write_artifact(folder, FORMAT, {**plain, "lora": lora}, tensors, files.info, query_card(files))


def query_card(files: QueryFiles) -> str:
    """What the query asks, of which model, what it was trained on, how well it does."""
    settings, deltas = files.settings, files.adapter.deltas
    layers = sorted({layer.rsplit(".", 1)[-1] for layer in deltas})
    ranks = sorted({len(delta.a) for delta in deltas.values() if isinstance(delta, LowRank)})
    wording = next(fmt for fmt in FORMATS if fmt.name == settings.query).text.strip().replace("\n", " / ")
    before = "the prompt's and the answer's own tokens" if settings.layout == "chat" else "both as plain text"
    facts = {
        "Type": f"LoRA + prompt (Kapoor et al. 2024), one score per {settings.level}",
        "Query": f"`{wording}`",
        "Before it": before,
        "LoRA": f"rank {', '.join(map(str, ranks))} on {', '.join(layers)}, {len(deltas)} layers",
        "Temperature": f"{settings.temperature:.3f}",
    }
    use = (
        "The answer is written without the adapter; then the model reads it and the query once more, with the adapter."
        ' Use it with `model.answer(question, estimators=["query"])`, or give this folder in place of the name.'
    )
    return card_text("Query: is the proposed answer correct?", facts, files.info, use)
