"""Records for the threshold playground from feature caches: the answers are there already, so no model runs.

The same file comes from `uqchat evaluate`, which asks the model; this is the quick way after `data generate`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trainers.cache import FeatureCache
from trainers.data import add_model_arguments
from trainers.replay import Opened, Scored, replay
from uqchat.calibration import Calibration, Calibrations
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.estimators import Estimator
from uqchat.models import load_model
from uqchat.records import Record, as_row
from uqchat.records_files import checked, table_of, write_table
from uqchat.types import Risk, ScoredToken

DEFAULT = "entropy,max_prob,margin,rauq,uq_head,probe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers records`."""
    add_model_arguments(parser)
    parser.add_argument("--caches", nargs="+", required=True, type=Path, help="folders of `data generate`, labelled")
    parser.add_argument(
        "--estimators", default=DEFAULT, help="names or folders, comma-separated; also name=folder, entropy:max"
    )
    parser.add_argument("--splits", default="eval", help="answers to take")
    parser.add_argument("--out", type=Path, required=True, help="the .parquet file to write")


def main(args: argparse.Namespace) -> int:
    """Score and write."""
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    names = [name.strip() for name in args.estimators.split(",") if name.strip()]
    estimators = [model.uncalibrated(name) for name in names]
    fitted = [_calibrations(model, name) for name in names]
    splits = tuple(part.strip() for part in args.splits.split(",") if part.strip())
    rows = []
    for folder in args.caches:
        cache = FeatureCache.open(folder)
        if cache.info["weights_fingerprint"] != model.shelf.fingerprint:
            raise InputError(f"{folder} holds answers of other weights than {model.name}'s.")
        rows += [as_row(record) for record in records_of(cache, estimators, fitted, splits, model.name)]
    if not rows:
        raise InputError(f"No answer of {', '.join(splits)} in these caches.")
    write_table(checked(table_of(rows), args.out.stem), args.out)
    print(f"{args.out}: {len(rows):,} answers, {', '.join(names)}", file=sys.stderr)
    return 0


def _calibrations(model: Opened, name: str) -> Calibrations:
    """Those of the folder; the largest token's score has none."""
    if name.endswith(":max"):
        return Calibrations()
    return model.estimator(name.rpartition("=")[2]).calibrations or Calibrations()


def records_of(
    cache: FeatureCache,
    estimators: Sequence[Estimator],
    fitted: Sequence[Calibrations],
    splits: Sequence[str],
    model: str,
) -> Iterator[Record]:
    """The answers of a cache as records, with the values and scopes that a chat would give them.

    Args:
        estimators: uncalibrated, in the order of `fitted`.
    """
    places = {id(answer): index for index, answer in enumerate(cache.answers)}
    for scored in replay(cache, estimators, splits):
        yield _record(scored, _prompt_states(cache, places[id(scored.answer)]), estimators, fitted, model)


def _prompt_states(cache: FeatureCache, index: int) -> dict[int, object]:
    first = cache.span(index).start
    return {layer: cache.array(f"hidden_{layer}")[first] for layer in cache.hidden_layers}


def _record(
    scored: Scored,
    states: dict[int, object],
    estimators: Sequence[Estimator],
    fitted: Sequence[Calibrations],
    model: str,
) -> Record:
    answer, tokens = scored.answer, scored.tokens
    risks, outside, scopes = {}, {}, {}
    for one, both in zip(estimators, fitted, strict=True):
        risk, reason = scored.risks[one.name], None
        if both.answer is not None:
            reason = _outside(both.answer, states, answer.temperature, len(answer.answer_ids))
            risk = Risk(float(both.answer.apply(risk.raw)), risk.raw, None if reason else both.answer.scope.name)
            scopes[one.name] = both.answer.scope.name
        if both.token is not None:
            tokens = tuple(_calibrated(token, one.name, both.token) for token in tokens)
        risks[one.name] = risk
        outside |= {one.name: reason} if reason else {}
    return Record(
        question_id=answer.id,
        question=answer.question,
        answer=answer.text,
        is_error=answer.is_error,
        risks=risks,
        set=answer.set,
        category=answer.category,
        references=tuple(answer.references),
        style=answer.style,
        sample=answer.sample,
        split=answer.split,
        outside_scope=outside,
        tokens=tokens,
        model=model,
        versions={"calibrations": scopes, "kind": "open"},
    )


def _outside(fitted: Calibration, states: dict[int, object], temperature: float, count: int) -> str | None:
    detector = fitted.scope.detector
    state = None if detector is None else states.get(detector.layer)
    return fitted.scope.outside(state, GenerationConfig(temperature=temperature), count)


def _calibrated(token: ScoredToken, name: str, fitted: Calibration) -> ScoredToken:
    if name not in token.risks:
        return token
    risk = token.risks[name]
    return replace(token, risks={**token.risks, name: Risk(float(fitted.apply(risk.raw)), risk.raw)})
