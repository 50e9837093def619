"""What ensembles of voters say of cached answers, several of them in one reading: for choosing noise, layers, measures.

Each ensemble is a set of settings (voters from noise, or with `rate` rows with dropout: no training) or the folder of
a trained one. An answer's risks
are means over its tokens, and with `:max` the largest, of: mutual information / ln n (no suffix), `variance` of the
token's probability, `disagreement` (1 - vote share) and `surprisal` (-log of the voters' mean probability).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainers.answers import AnswerRow
from trainers.ask import Asker
from trainers.cache import FeatureCache
from trainers.data import add_model_arguments
from trainers.query_calibrate import labelled
from trainers.replay import Opened
from trainers.score import append_lines, identity
from trainers.training_set import num_content
from uqchat.engine.adapters import Adapter
from uqchat.engine.backend import FinishEvent, StepEvent
from uqchat.errors import InputError
from uqchat.estimators.dropout_files import DropoutSettings, masked_inputs
from uqchat.estimators.vote_files import read_vote
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.models import load_model
from uqchat.types import Ensemble, Signals, Votes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers vote-scores`."""
    add_model_arguments(parser)
    parser.add_argument("--caches", nargs="+", required=True, type=Path, help="folders of `data generate`, labelled")
    parser.add_argument(
        "--ensembles", required=True, help='JSON: name -> settings or folder, such as {"dense": {"noise": "dense"}}'
    )
    parser.add_argument("--splits", default="eval", help="answers to take")
    parser.add_argument("--limit", type=int, default=0, help="answers of each cache at most; 0 is all")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines to write, or to go on with")


def main(args: argparse.Namespace) -> int:
    """Read and write."""
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    asker = Asker(model.info)
    ensembles = {name: made(model, asker, value) for name, value in _parsed(args.ensembles).items()}
    splits = tuple(part.strip() for part in args.splits.split(",") if part.strip())
    rows = [labelled(FeatureCache.open(folder), splits, args.limit) for folder in args.caches]

    def score(part: Sequence[AnswerRow]) -> Iterator[dict[str, Any]]:
        signals = Signals(ensembles=tuple(ensembles.values()))
        for row, votes in zip(part, ask_voters(asker, part, signals), strict=True):
            risks: dict[str, float] = {}
            for name, ensemble in ensembles.items():
                risks |= summary(name, [step[ensemble] for step in votes[: num_content(row)]])
            yield identity(row) | {"risks": risks}

    append_lines(args.out, rows, score)
    return 0


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"--ensembles is not readable JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise InputError('--ensembles must be an object such as {"three": {"n_voters": 3}}.')
    return found


def made(model: Opened, asker: Asker, value: dict[str, Any] | str) -> Ensemble:
    """An ensemble from settings or a folder; equal voters of several ensembles are read once.

    Raises:
        UqchatError: settings that are not allowed, no matching layer, a folder that cannot be used.
    """
    if isinstance(value, str):
        voters: Sequence[Any] = read_vote(Path(value), model).voters
        kind = value
    else:
        voters = _from_settings(model, value)
        own = {key: each for key, each in value.items() if key not in ("n_voters", "n_samples")}
        kind = f"{'dropout' if _is_dropout(value) else 'vote'} {json.dumps(own, sort_keys=True)}"
    names = [f"{kind} {i}" for i in range(len(voters))]
    for name, voter in zip(names, voters, strict=True):
        if name not in asker.engine.adapters:
            asker.engine.adapters.add(Adapter(name, dict(voter)))
    return Ensemble(tuple(names))


def _is_dropout(value: dict[str, Any]) -> bool:
    return "rate" in value or "n_samples" in value


def _from_settings(model: Opened, value: dict[str, Any]) -> Sequence[Any]:
    try:
        settings = DropoutSettings(**value) if _is_dropout(value) else VoteSettings(**value)
    except TypeError as error:
        raise InputError(f"An ensemble cannot be made of {value!r}: {error}") from error
    if isinstance(settings, DropoutSettings):
        return masked_inputs(model.model, settings)
    return noise_voters(model.model, settings)


def ask_voters(asker: Asker, rows: Sequence[AnswerRow], signals: Signals) -> list[list[dict[Ensemble, Votes]]]:
    """Of each answer, for each of its tokens, what every ensemble says. Raises UqchatError when the model fails."""
    found: list[list[dict[Ensemble, Votes]]] = [[] for _ in rows]
    for event in asker.engine.stream([asker.request(row, signals) for row in rows]):
        if isinstance(event, StepEvent):
            found[event.key].append(dict(event.step.signals.votes))
        elif isinstance(event, FinishEvent) and event.error is not None:
            raise event.error
    return found


def summary(name: str, votes: Sequence[Votes]) -> dict[str, float]:
    """The risks of one answer by one ensemble."""
    size = math.log(max(len(votes[0].probabilities), 2))
    measures = {
        name: [vote.mutual_information / size for vote in votes],
        f"{name} variance": [float(np.var(vote.probabilities)) for vote in votes],
        f"{name} disagreement": [1 - vote.vote_share for vote in votes],
        f"{name} surprisal": [-math.log(max(float(np.mean(vote.probabilities)), 1e-30)) for vote in votes],
    }
    found = {}
    for measure, values in measures.items():
        found |= {measure: float(np.mean(values)), f"{measure}:max": max(values)}
    return found
