"""Fits a combination of estimators: `python -m trainers combination --run-dir D --caches '["a"]' --output F`.

A logistic regression on the members' raw scores of labelled answers that trained none of them, as a calibration is
fitted; weights are never negative, so a member that says "riskier" never lowers the risk. The model is not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from trainers.answers import IGNORED
from trainers.common import Run, add_run_arguments, read_settings, run_trainer
from trainers.replay import Opened, replay
from trainers.run_folder import ARTIFACT, TrainingError, command_line
from trainers.training_set import (
    DataConfig,
    TrainingSet,
    balanced_weights,
    has_answer_label,
    macro_auroc,
    read_training_set,
)
from uqchat.errors import InputError
from uqchat.estimators.base import Estimator
from uqchat.estimators.combination import Combination, Formula, Member, open_members
from uqchat.estimators.word_pool import own_words
from uqchat.models import load_model
from uqchat.restating import newest_question
from uqchat.types import as_messages

Array = np.ndarray
BALANCES = ("none", "class", "group")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a combination."""

    data: DataConfig
    members: tuple[str, ...] = ("../probe", "../uq_head")
    """Names of estimators, or folders relative to the output; `:max` takes the largest of the tokens' scores."""
    model: str = "embedded"
    """The language model: embedded, a Hub id or a folder."""
    dtype: str = ""
    """Its number format; empty chooses."""
    penalty: float = 1.0
    """Of the squared weights of standardised scores, in answers; 0 or more."""
    balance: str = "none"
    """"none" keeps the odds of errors, "class" and "group" make right and wrong weigh the same (per set and style)."""
    is_by_word: bool = True
    """Whether a token has the highest score of its word's tokens, and more where its word is the answer's own: training
    labels hold every other word to be right, so that mixed with those the words that answer would seem safe too."""
    output: str = ""
    """Folder of the finished combination; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises InputError."""
        if not self.members or self.penalty < 0 or self.balance not in BALANCES:
            raise InputError(f"A combination needs members, a penalty of 0 or more, balance {', '.join(BALANCES)}.")


@dataclass
class Scores:
    """Raw scores of the members, a row for each answer or token."""

    answers: Array
    is_error: Array
    groups: list[str]
    tokens: Array
    token_is_error: Array
    token_is_own: Array


def member_of(text: str) -> Member:
    """`entropy:max` is the largest token score of `entropy`."""
    name, _, statistic = text.rpartition(":") if text.endswith((":max", ":raw")) else (text, "", "raw")
    return Member(name, statistic)


def collect(data: TrainingSet, members: Sequence[Member], estimators: Mapping[str, Estimator]) -> Scores:
    """What the members say of a set's answers and of their labelled tokens.

    Raises:
        InputError: see `replay`: a signal was not cached, or a member must ask the model again.
    """
    wanted = {(row.key, row.set) for row in data.rows}
    names = {key: one.name for key, one in estimators.items()}
    answers, labels, groups, tokens, token_labels, own = [], [], [], [], [], []
    for cache in data.caches:
        for scored in replay(cache, list(estimators.values())):
            row = scored.answer
            if (row.key, row.set) not in wanted:
                continue
            by_token = [[t.risks[names[m.estimator]].raw for m in members] for t in scored.tokens]
            said = [j for j, token in enumerate(scored.tokens) if not (token.is_end or token.is_reasoning)]
            if has_answer_label(row):
                raws = [scored.risks[names[m.estimator]].raw for m in members]
                largest = np.max([by_token[j] for j in said], axis=0)
                answers.append(
                    [b if m.statistic == "max" else a for m, a, b in zip(members, raws, largest, strict=True)]
                )
                labels.append(row.is_error)
                groups.append(f"{row.set} {row.style}")
            known = [j for j in said if row.token_labels and row.token_labels[j] != IGNORED]
            tokens += [by_token[j] for j in known]
            token_labels += [row.token_labels[j] for j in known]
            texts = {token.index: token.text for token in scored.tokens}
            is_own = own_words(newest_question(as_messages(row.messages)), texts)
            own += [is_own[scored.tokens[j].index] for j in known]
    count = len(members)
    return Scores(
        np.array(answers).reshape(-1, count),
        np.array(labels, float),
        groups,
        np.array(tokens).reshape(-1, count),
        np.array(token_labels, float),
        np.array(own, float),
    )


def fit_formula(raws: Array, is_error: Array, penalty: float = 1.0, weights: Array | None = None) -> Formula:
    """Logistic regression with weights of 0 or more, an L2 penalty on those of standardised scores.

    Args:
        raws: (N, members). is_error: (N,), 0 or 1. weights: (N,).

    Raises:
        TrainingError: nothing to fit to, only one kind of label, or a score that is no number.
    """
    if not len(raws) or is_error.min() == is_error.max():
        raise TrainingError("A combination needs right and wrong answers to be fitted to; look at splits and labels.")
    if not np.isfinite(raws).all():
        raise TrainingError("A member gave scores that are no finite numbers.")
    mean, scale = raws.mean(0), raws.std(0)
    scale[scale < 1e-9] = 1.0
    rows = (raws - mean) / scale
    mass = np.ones(len(rows)) if weights is None else weights

    def objective(parameters: Array) -> tuple[float, Array]:
        logits = rows @ parameters[1:] + parameters[0]
        loss = mass @ (np.logaddexp(0, logits) - is_error * logits) + penalty / 2 * parameters[1:] @ parameters[1:]
        error = mass * (expit(logits) - is_error)
        return loss, np.concatenate([[error.sum()], rows.T @ error + penalty * parameters[1:]])

    bounds = [(None, None), *[(0, None)] * rows.shape[1]]
    found = minimize(objective, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    slopes = found[1:] / scale
    return Formula(tuple(slopes.tolist()), float(found[0] - slopes @ mean))


def fit_tokens(scores: Scores, config: TrainConfig) -> tuple[Formula, float]:
    """The formula of a token, and what is added to it in words that are the answer's own. Raises: see `fit_formula`."""
    if not config.is_by_word:
        return fit_formula(scores.tokens, scores.token_is_error, config.penalty), 0.0
    both = fit_formula(np.c_[scores.tokens, scores.token_is_own], scores.token_is_error, config.penalty)
    return Formula(both.weights[:-1], both.bias), both.weights[-1]


def train(config: TrainConfig, run: Run) -> Mapping[str, Any] | None:
    """Fit, and write the combination's folder. Raises UqchatError: no usable data, a member that cannot be opened."""
    data = read_training_set(config.data, run.log)
    model = Opened(load_model(config.model, dtype=config.dtype or None))
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    members = [member_of(text) for text in config.members]
    estimators = open_members(members, folder, model)
    scores = collect(data, members, estimators)
    weights = _weights(scores, config.balance)
    answer = fit_formula(scores.answers, scores.is_error, config.penalty, weights)
    has_tokens = all(one.level == "token" for one in estimators.values()) and len(set(scores.token_is_error)) == 2
    token, own = fit_tokens(scores, config) if has_tokens else (None, 0.0)
    combined = [answer(raws) for raws in scores.answers.tolist()]
    metrics = {"fit auroc": macro_auroc(combined, scores.is_error.tolist(), scores.groups)["auroc"]}
    for place, text in enumerate(config.members):
        alone = scores.answers[:, place].tolist()
        metrics[f"fit auroc of {text} alone"] = macro_auroc(alone, scores.is_error.tolist(), scores.groups)["auroc"]
    info = data.origin(metrics=metrics, command=command_line())
    Combination(members, estimators, answer, token, info, is_by_word=config.is_by_word, own=own).save(folder)
    return {"artifact": str(folder), "answers": len(scores.answers), "tokens": len(scores.tokens), "metrics": metrics}


def _weights(scores: Scores, balance: str) -> Array | None:
    if balance == "none":
        return None
    labels = torch.from_numpy(scores.is_error).float()
    return balanced_weights(labels, scores.groups if balance == "group" else None).double().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainers combination`."""
    add_run_arguments(parser, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """Fit it in a run's folder. Raises what `train` raises."""
    return run_trainer("combination", args, read_settings(TrainConfig, args), train)
