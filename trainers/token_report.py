"""How well token risks point at what is wrong inside an answer, as `python -m trainers tokens` prints it.

Only answers whose facts are graded one by one count (`data generate --several`). Knows no model: the estimators
replay cached signals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainers.answers import AnswerRow
from trainers.cache import FeatureCache
from trainers.data import add_model_arguments
from trainers.replay import Opened, Scored, replay
from trainers.run_folder import write_json
from trainers.token_labels import GradedSpan, graded_spans, restating_words
from uqchat.errors import InputError
from uqchat.estimators import Estimator
from uqchat.metrics import auroc
from uqchat.metrics_bootstrap import Interval, interval_of
from uqchat.models import load_model
from uqchat.types import ScoredToken

DEFAULT = "entropy,max_prob,uq_head,probe"
SAMPLES = 1000
Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Answer:
    """Raw scores of one answer's tokens by what they carry."""

    within: float | None
    """AUROC of wrong against right fact tokens; None unless it has both."""
    is_reddest_wrong: bool | None
    """Whether the riskiest of all tokens stands in a wrong fact; None without a wrong fact."""
    wrong: list[float]
    """Of the tokens in wrong facts."""
    restating: list[float]
    """Of each word that restates the question, its riskiest token's."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Value and 95 % bootstrap interval over answers, each in [0, 1]; how many answers they are of."""

    within: Interval
    num_mixed: int
    reddest: Interval
    num_wrong: int
    restating: float
    """Share of restating words above the median token of a wrong fact."""
    num_restating: int


def judge(row: AnswerRow, tokens: Sequence[ScoredToken], name: str) -> Answer | None:
    """What one estimator says of one answer; None where no fact in it could be graded."""
    spans = graded_spans(row)
    own = [token for token in tokens if not (token.is_end or token.is_reasoning) and name in token.risks]
    facts = [(t.risks[name].raw, _label(t, spans)) for t in own]
    known = [(raw, label) for raw, label in facts if label is not None]
    if not known:
        return None
    raws, labels = zip(*known, strict=True)
    has_wrong = True in labels
    return Answer(
        auroc(raws, labels) if len(set(labels)) == 2 else None,
        max(facts, key=lambda pair: pair[0])[1] is True if has_wrong else None,
        [raw for raw, label in known if label],
        [raw for start, end in restating_words(row) if (raw := _riskiest(own, name, start, end)) is not None],
    )


def _label(token: ScoredToken, spans: Sequence[GradedSpan]) -> bool | None:
    """True in a wrong fact, False in a right one, None in neither."""
    start, end = token.span
    inside = [span.is_error for span in spans if start < span.end and end > span.start]
    return any(inside) if inside else None


def _riskiest(tokens: Sequence[ScoredToken], name: str, start: int, end: int) -> float | None:
    return max((t.risks[name].raw for t in tokens if t.span[0] < end and t.span[1] > start), default=None)


def figures(answers: Sequence[Answer], seed: int = 0) -> Figures:
    """All answers of one estimator together. Raises InputError: no answer with right and wrong facts."""
    within = np.array([one.within for one in answers if one.within is not None])
    reddest = np.array([float(one.is_reddest_wrong) for one in answers if one.is_reddest_wrong is not None])
    if not len(within):
        raise InputError("No answer has right and wrong facts in it; ask for several with `data generate --several`.")
    median = np.median([raw for one in answers for raw in one.wrong])
    above = [raw > median for one in answers for raw in one.restating]
    share = float(np.mean(above)) if above else 0.0
    return Figures(_interval(within, seed), len(within), _interval(reddest, seed), len(reddest), share, len(above))


def _interval(values: Array, seed: int) -> Interval:
    draws = np.random.default_rng(seed).integers(0, len(values), (SAMPLES, len(values)))
    return interval_of(np.concatenate([[values.mean()], values[draws].mean(1)]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers tokens`."""
    add_model_arguments(parser)
    parser.add_argument("--caches", nargs="+", required=True, type=Path, help="folders of `data generate --several`")
    parser.add_argument("--estimators", default=DEFAULT, help="names or folders, comma-separated; also name=folder")
    parser.add_argument("--splits", default="eval", help="answers that count")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")


def main(args: argparse.Namespace) -> int:
    """Score, judge, print a table."""
    model = Opened(load_model(args.model, args.device, args.dtype, args.quantization))
    estimators = [model.uncalibrated(name.strip()) for name in args.estimators.split(",") if name.strip()]
    judged: dict[str, list[Answer]] = {one.name: [] for one in estimators}
    for scored in _answers(args.caches, model, estimators, tuple(args.splits.split(","))):
        for name, found in judged.items():
            one = judge(scored.answer, scored.tokens, name)
            if one is not None:
                found.append(one)
    table = {name: figures(found) for name, found in judged.items()}
    print(markdown(table))
    if args.out:
        rows = {name: asdict(one) for name, one in table.items()}
        write_json(args.out, rows)
    return 0


def _answers(
    folders: Sequence[Path], model: Opened, estimators: Sequence[Estimator], splits: tuple[str, ...]
) -> Iterator[Scored]:
    for folder in folders:
        for scored in replay(FeatureCache.open(folder), estimators, splits):
            if scored.answer.facts:
                yield scored


def markdown(table: dict[str, Figures]) -> str:
    """A row for each estimator."""
    any_one = next(iter(table.values()))
    head = [
        "score",
        f"AUROC of wrong against right facts within an answer ({any_one.num_mixed} answers)",
        f"riskiest token in a wrong fact ({any_one.num_wrong} answers)",
        f"of {any_one.num_restating} restating words, above the median wrong token",
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, one in table.items():
        reddest = f"{one.reddest.value:.0%} [{one.reddest.low:.0%}, {one.reddest.high:.0%}]"
        lines.append(f"| {name} | {one.within} | {reddest} | {one.restating:.1%} |")
    return "\n".join(lines)
