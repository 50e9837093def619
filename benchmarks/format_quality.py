"""What a number format costs: NLL of answers, and how well the shipped estimators still tell right from wrong.

The answers were generated and graded beforehand: `UQCHAT_BENCH_ANSWERS` names folders of `python -m trainers data`,
separated by colons; equally many answers are taken from each. Every format reads the same ids by teacher forcing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import uqchat
from benchmarks.common import Row, save
from trainers.answers import AnswerRow, read_answers
from uqchat.metrics_bootstrap import Interval, bootstrap, bootstrap_difference

VARIABLE, COUNT, BATCH = "UQCHAT_BENCH_ANSWERS", 300, 20
FORMATS = {"fp32": ("float32", None), "bf16": ("bfloat16", None), "int8": ("bfloat16", "int8")}
ESTIMATORS = ("entropy", "probe", "uq_head")
NLL_BAR, AUROC_BAR = 0.02, 0.01


@dataclass(frozen=True)
class Scored:
    """Of every answer: the sum of its tokens' NLL in nats, and its raw risk by estimator."""

    nll: np.ndarray  # (N,)
    risks: dict[str, np.ndarray]  # (N,) each


def chosen_answers() -> list[AnswerRow]:
    """Graded answers, the first of every folder; empty where no folder is named."""
    folders = [Path(part) for part in os.environ.get(VARIABLE, "").split(":") if part]
    rows: list[AnswerRow] = []
    for folder in folders:
        rows += [row for row in read_answers(folder) if row.is_error is not None][: COUNT // len(folders)]
    return rows


def score(name: str, rows: Sequence[AnswerRow]) -> Scored:
    """Read all answers in one format."""
    dtype, quantization = FORMATS[name]
    model = uqchat.load("embedded", dtype=dtype, quantization=quantization)
    answers = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        answers += model.scores([row.messages for row in part], [row.answer_ids for row in part], ESTIMATORS)
    model.close()
    nll = np.array([-sum(token.logprob for token in answer.tokens) for answer in answers])
    return Scored(nll, {name: np.array([answer.risks[name].raw for answer in answers]) for name in ESTIMATORS})


def mean_difference(ours: Scored, exact: Scored, tokens: np.ndarray, samples: int = 1000) -> Interval:
    """Mean NLL of a token above that in float32, with the paired bootstrap over answers."""
    generator, apart = np.random.default_rng(0), ours.nll - exact.nll
    draws = generator.integers(len(tokens), size=(samples, len(tokens)))
    means = apart[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(apart.sum() / tokens.sum()), float(low), float(high))


def main(repeats: int) -> None:
    """Every format against float32."""
    rows = chosen_answers()
    if not rows:
        print(f"format_quality skipped: {VARIABLE} names no folders of graded answers, see its first lines")
        return
    labels = np.array([row.is_error for row in rows])
    tokens = np.array([len(row.answer_ids) for row in rows])
    scored = {name: score(name, rows) for name in FORMATS}
    exact, table = scored["fp32"], []
    for name in list(FORMATS)[1:]:
        lost = mean_difference(scored[name], exact, tokens)
        levels = ", ".join(f"{n} {scored[n].nll.sum() / tokens.sum():.4f}" for n in (name, "fp32"))
        claim = f"{name}: mean NLL of a token of {len(rows)} graded short answers, above float32's (95 % bootstrap)"
        table.append(_row(claim, name, lost, lost.value, NLL_BAR, levels))
        for estimator in ESTIMATORS:
            risks = [scored[n].risks[estimator] for n in (name, "fp32")]
            change = bootstrap_difference("auroc", *risks, labels)
            both = ", ".join(f"{n} {bootstrap('auroc', r, labels)}" for n, r in zip((name, "fp32"), risks, strict=True))
            claim = f"{name}: AUROC of {estimator} on them, above float32's (95 % paired bootstrap)"
            table.append(_row(claim, name, change, abs(change.value), AUROC_BAR, both))
    settings = {"answers": len(rows), "wrong": int(labels.sum()), "sets": sorted({row.set for row in rows})}
    save("format_quality", table, settings)


def _row(claim: str, name: str, change: Interval, size: float, bar: float, detail: str) -> Row:
    return Row(claim, name, "fp32", change.value, change.low, change.high, f"within {bar:g}", size <= bar, detail)


if __name__ == "__main__":
    main(1)
