"""Risks of cached answers by any estimators, for `python -m trainers report`: the model reads every answer once more.

Where the caches hold all that is read, they are replayed instead. Caches are read in turn, a few answers of each at a
time, and lines are appended as they come: an interrupted run goes on, and has read about equally much of every cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainers.answers import AnswerRow
from trainers.ask import PART, Asker, can_replay
from trainers.cache import FeatureCache
from trainers.data import add_model_arguments
from trainers.query_calibrate import labelled
from trainers.replay import Opened, Scored, replay
from uqchat.errors import InputError
from uqchat.estimators import Estimator
from uqchat.models import load_model
from uqchat.scoring import mean_over_tokens

STATISTICS = ("risk", "mean", "max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers score`."""
    add_model_arguments(parser)
    parser.add_argument("--caches", nargs="+", required=True, type=Path, help="folders of `data generate`, labelled")
    parser.add_argument("--estimators", nargs="+", required=True, help="names or folders; 'FOLDER as NAME' renames")
    parser.add_argument("--statistics", default="risk", help=f"of the raw scores of an answer: {', '.join(STATISTICS)}")
    parser.add_argument("--splits", default="eval", help="answers to take")
    parser.add_argument("--limit", type=int, default=0, help="answers of each cache at most; 0 is all")
    parser.add_argument("--out", type=Path, required=True, help="JSON Lines to write, or to go on with")


def main(args: argparse.Namespace) -> int:
    """Score and write."""
    wanted = dict(_named(part) for part in args.estimators)
    statistics = tuple(part.strip() for part in args.statistics.split(",") if part.strip())
    unknown = [name for name in statistics if name not in STATISTICS]
    if unknown:
        raise InputError(f"--statistics takes {', '.join(STATISTICS)}; got {unknown[0]!r}.")
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    estimators, asker = [model.uncalibrated(name) for name in wanted], Asker(model.info)
    splits = tuple(part.strip() for part in args.splits.split(",") if part.strip())
    caches = [FeatureCache.open(folder) for folder in args.caches]
    rows = [labelled(cache, splits, args.limit) for cache in caches]
    if all(can_replay(cache, one) for cache in caches for one in estimators):
        known = _replayed(caches, rows, estimators, splits)
        ask: Callable[[Sequence[AnswerRow]], Iterator[Scored]] = lambda part: (known[key_of(row)] for row in part)  # noqa: E731
    else:
        ask = lambda part: asker.ask(part, estimators)  # noqa: E731
    append_lines(args.out, rows, lambda part: (line_of(scored, wanted, statistics) for scored in ask(part)))
    return 0


def _replayed(
    caches: Sequence[FeatureCache],
    rows: Sequence[Sequence[AnswerRow]],
    estimators: Sequence[Estimator],
    splits: Sequence[str],
) -> dict[str, Scored]:
    """The wanted answers by key; a cache is read no further than the last of them."""
    known: dict[str, Scored] = {}
    for cache, part in zip(caches, rows, strict=True):
        wanted = {key_of(row) for row in part}
        for scored in replay(cache, estimators, splits):
            key = key_of(scored.answer)
            known |= {key: scored} if key in wanted else {}
            wanted.discard(key)
            if not wanted:
                break
    return known


def append_lines(
    path: Path,
    rows: Sequence[Sequence[AnswerRow]],
    score: Callable[[Sequence[AnswerRow]], Iterable[Mapping[str, Any]]],
) -> None:
    """Score the answers that a file does not have yet, a few of each cache in turn, and append their lines.

    Raises:
        InputError: the file is not one of these.
    """
    done = _done(path)
    todo = [[row for row in part if key_of(row) not in done] for part in rows]
    total, count = sum(map(len, rows)), sum(map(len, rows)) - sum(map(len, todo))
    with path.open("a", encoding="utf-8") as file:
        for part in _in_turn(todo):
            for line in score(part):
                file.write(json.dumps(line) + "\n")
            file.flush()
            count += len(part)
            print(f"{count:,} of {total:,} answers", file=sys.stderr, flush=True)


def _named(text: str) -> tuple[str, str]:
    """Estimator and the name that it has in the file."""
    estimator, _, name = text.partition(" as ")
    return estimator.strip(), name.strip() or estimator.strip()


def key_of(row: AnswerRow) -> str:
    """Names an answer among those of all caches of a model."""
    return f"{row.set} {row.style} {row.id} {row.sample}"


def _done(path: Path) -> set[str]:
    """Keys of the answers that are there; a last line that a kill cut off is taken away."""
    if not path.is_file():
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    try:
        return {json.loads(line)["key"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no file of this command: {error!r}. Choose another --out.") from error


def _in_turn(parts: Sequence[Sequence[AnswerRow]]) -> Iterator[list[AnswerRow]]:
    """A few answers of each cache at a time."""
    cut = [[list(rows[i : i + PART]) for i in range(0, len(rows), PART)] for rows in parts]
    for group in zip_longest(*cut, fillvalue=[]):
        yield from (part for part in group if part)


def line_of(scored: Scored, names: Mapping[str, str], statistics: Sequence[str]) -> dict[str, Any]:
    """What one answer's line holds: `risk` is the answer's own, `mean` and `max` are over its tokens' raw scores."""
    row, found = scored.answer, {}
    for estimator, name in names.items():
        tokens = mean_over_tokens(scored.tokens, estimator)
        risk = scored.risks.get(estimator)
        values = {
            "risk": risk.raw if risk else None,
            "mean": tokens[1].mean if tokens else None,
            "max": tokens[1].max if tokens else None,
        }
        found |= {name if key == "risk" else f"{name}:{key}": values[key] for key in statistics}
    return identity(row) | {"risks": found}


def identity(row: AnswerRow) -> dict[str, Any]:
    """What a line says of the answer itself."""
    return {"key": key_of(row), "id": row.id, "set": row.set, "style": row.style, "is_error": row.is_error}
