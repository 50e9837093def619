"""Folders of fine-tuned voters: config.json, model.safetensors, a card. Knows no engine and no step.

config.json has the ensemble's settings (see `vote_settings`) beside "format", "version" and "info". The weights hold,
for every voter i and every linear layer that it changes, `voters.{i}.{layer}.a` (r, in) and `voters.{i}.{layer}.b`
(out, r): that voter's weight is the base's plus b @ a. All voters change the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from uqchat.artifact_files import CONFIG, card_text, read_config_json, read_tensors, require, write_artifact
from uqchat.engine.adapters import Adapter, LowRank, check_adapter
from uqchat.errors import InputError
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.origin import ArtifactError, Origin, check_origin, read_origin

FORMAT = "uqchat-vote"
KEY = re.compile(r"voters\.(?P<voter>\d+)\.(?P<layer>.+)\.(?P<part>[ab])")
SETTINGS = tuple(field.name for field in fields(VoteSettings))
Voter = dict[str, LowRank]


@dataclass(frozen=True)
class VoteFiles:
    """A fine-tuned ensemble, as a folder holds it. `voters`: of each, its changes by layer."""

    settings: VoteSettings
    voters: tuple[Voter, ...]
    info: Origin


def read_vote(folder: Path, model: Any, *, allow_mismatch: bool = False) -> VoteFiles:
    """The voters of a folder.

    Args:
        model: what `uqchat.load` returns. allow_mismatch: whether another base model whose layers fit may be used.

    Raises:
        ArtifactError: a file is missing or damaged, or the voters were trained for another model.
        InputError: their layers do not fit the model.
    """
    raw = read_config_json(folder, FORMAT, SETTINGS)
    info = read_origin(raw["info"])
    if not allow_mismatch:
        check_origin(info, model, "ensemble")
    settings = _settings(raw)
    voters = _voters(read_tensors(folder), settings.n_voters)
    for number, voter in enumerate(voters):
        check_adapter(Adapter(f"voter {number} of {folder}", dict(voter)), model.model)
    return VoteFiles(settings, voters, info)


def write_vote(files: VoteFiles, folder: Path) -> None:
    """Write the folder, with a card. Any scale of a change becomes part of its b.

    Raises:
        ArtifactError: it cannot be written.
        InputError: there are more or fewer voters than the settings say, or they change different layers.
    """
    if len(files.voters) != files.settings.n_voters:
        raise InputError(f"The settings say {files.settings.n_voters} voters, but there are {len(files.voters)}.")
    if any(set(voter) != set(files.voters[0]) for voter in files.voters) or not files.voters[0]:
        raise InputError("All voters of an ensemble must change the same layers, at least one.")
    tensors: dict[str, Tensor] = {}
    for number, voter in enumerate(files.voters):
        for layer, delta in voter.items():
            tensors[f"voters.{number}.{layer}.a"] = delta.a
            tensors[f"voters.{number}.{layer}.b"] = delta.b * delta.scale
    write_artifact(folder, FORMAT, asdict(files.settings), tensors, files.info, vote_card(files))


def vote_card(files: VoteFiles) -> str:
    """How many voters there are, where they differ, what they were trained on, how well they do."""
    settings, first = files.settings, files.voters[0]
    kinds = sorted({layer.rsplit(".", 1)[-1] for layer in first})
    ranks = sorted({len(delta.a) for voter in files.voters for delta in voter.values()})
    size = sum(delta.a.numel() + delta.b.numel() for delta in first.values())
    facts = {
        "Type": "ensemble of low-rank voters that share the base model",
        "Voters": f"{settings.n_voters}, {size:,} numbers each",
        "Differ in": f"{', '.join(kinds)} ({len(first)} layers), rank {', '.join(map(str, ranks))}",
        "Started from": f"noise {settings.weight_noise:g} of each weight's deviation, alpha {settings.alpha:g}",
        "Prediction": "the base's own" if settings.prediction == "base" else "mean of the voters' distributions",
    }
    use = (
        "Token risk = mutual information between token and voter, divided by ln n."
        ' Use it with `model.answer(question, estimators=["vote"])`, or give this folder in place of the name.'
    )
    return card_text("Vote: do the voters agree?", facts, files.info, use)


def _settings(raw: Mapping[str, Any]) -> VoteSettings:
    missing = [name for name in SETTINGS if name not in raw]
    if missing:
        raise ArtifactError(f"{CONFIG} of the ensemble lacks `{missing[0]}`.")
    require(raw, "param_filter", str)
    try:
        return VoteSettings(**{name: raw[name] for name in SETTINGS})
    except InputError as error:
        raise ArtifactError(f"{CONFIG} of the ensemble cannot be used: {error}") from error


def _voters(tensors: Mapping[str, Tensor], count: int) -> tuple[Voter, ...]:
    """Raises ArtifactError: an unknown name, half a pair, or a voter without its layers."""
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None or int(match["voter"]) >= count:
            raise ArtifactError(
                f"The ensemble's weights hold {name[:80]!r}; voters.0 to voters.{count - 1} with a layer and a or b"
                " are allowed."
            )
        pairs.setdefault((int(match["voter"]), match["layer"]), {})[match["part"]] = tensor
    half = next((layer for (_, layer), pair in pairs.items() if len(pair) < 2), None)
    if half is not None:
        raise ArtifactError(f"The ensemble's weights have only one factor of layer {half!r}.")
    layers = {layer for _, layer in pairs}
    if not layers or len(pairs) != count * len(layers):
        raise ArtifactError(f"The ensemble must hold the same layers, at least one, of each of its {count} voters.")
    return tuple({layer: LowRank(**pairs[number, layer]) for layer in sorted(layers)} for number in range(count))
