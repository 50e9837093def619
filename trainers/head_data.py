"""Feature rows, labels and claims of a training set, as uncertainty heads read them. Knows no training.

The rows are those that `uqchat.features` makes of live steps, of the answer's tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from trainers.answers import IGNORED
from trainers.run_folder import TrainingError
from trainers.training_set import TrainingSet, balanced_weights, has_answer_label, num_content, token_weights
from uqchat.features import FeatureSet
from uqchat.types import StepSignals

LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class HeadData:
    """Rows of all answers, one after the other. T counts the answers' tokens, the end tokens included."""

    data: TrainingSet
    rows: torch.Tensor
    """(T, F) float16."""
    starts: list[int]
    """N + 1: the rows of answer i are starts[i] to starts[i + 1]."""
    labels: torch.Tensor
    """(T,) int64: 1 wrong, 0 right, -100 ignored; an answer without token labels gives its own to every token."""
    token_weights: torch.Tensor
    """(T,), see `training_set.token_weights`; the tokens of one answer weigh about as much as one answer."""
    answer_labels: torch.Tensor
    """(N,) float32, 0 where there is none."""
    answer_weights: torch.Tensor
    """(N,), right and wrong the same together; 0 where there is no label."""
    counts: torch.Tensor
    """(N,) int64: tokens of each answer, the end token left out."""
    is_fact: torch.Tensor
    """(T,) bool: the token belongs to what was asked for."""


@dataclass(frozen=True)
class HeadBatch:
    """Some answers side by side, padded on the right."""

    rows: torch.Tensor
    """(B, S, F) float32."""
    is_real: torch.Tensor
    """(B, S)."""
    is_content: torch.Tensor
    """(B, S): neither padding nor end token."""
    labels: torch.Tensor
    """(B, S), -100 where ignored."""
    is_fact: torch.Tensor
    """(B, S)."""
    token_weights: torch.Tensor
    """(B, S)."""
    answer_labels: torch.Tensor
    answer_weights: torch.Tensor
    """(B,) each."""

    def claims(self) -> list[torch.Tensor]:
        """Of each answer (n + 1, S): runs of tokens with the same label, then the whole answer."""
        return [_claims(labels, own) for labels, own in zip(self.labels, self.is_content, strict=True)]


def make_head_data(data: TrainingSet, features: FeatureSet, pos_weight: float = 0.0) -> HeadData:
    """All rows and labels of a training set.

    Args:
        pos_weight: weight of a wrong token or answer where a right one has 1; 0 balances the kinds instead.

    Raises:
        TrainingError: the features need a signal that is not in the caches; the text names it.
    """
    check_signals(data, features)
    starts = np.cumsum([0, *(len(row.answer_ids) for row in data.rows)]).tolist()
    rows = torch.empty(starts[-1], features.width, dtype=torch.float16)
    labels = torch.full((starts[-1],), IGNORED, dtype=torch.int64)
    is_fact = torch.zeros(starts[-1], dtype=torch.bool)
    for index, row in enumerate(data.rows):
        span, count = slice(starts[index], starts[index + 1]), num_content(row)
        rows[span] = rows_of_answer(data, index, features).clamp(-LARGEST, LARGEST).half()
        own = data.token_labels(index)
        if row.token_labels is None and has_answer_label(row):
            own = torch.full((count,), int(row.is_error))
        labels[starts[index] : starts[index] + count] = own
        is_fact[starts[index] : starts[index] + count] = data.is_fact(index)
    is_error = data.is_error()
    counts = torch.tensor([num_content(row) for row in data.rows])
    by_token = _token_weights(labels, is_fact, starts, pos_weight)
    answers = balanced_weights(is_error)
    if pos_weight:
        answers = torch.where(is_error == 1, pos_weight, 1.0) * is_error.isfinite()
    return HeadData(data, rows, starts, labels, by_token, is_error.nan_to_num(0.0), answers, counts, is_fact)


def rows_of_answer(data: TrainingSet, index: int, features: FeatureSet) -> torch.Tensor:
    """(tokens, F) float32, what the features give for an answer's steps."""
    needs = features.needs
    hidden = {layer: data.states(layer, index) for layer in needs.hidden_layers}
    attention, layers, top = None, (), None
    if needs.attention_lags:
        attention = torch.from_numpy(np.array(data.array("attention", index))).float()[..., : needs.attention_lags]
        layers = tuple(range(attention.shape[1]))
    if needs.top_n:
        top = torch.from_numpy(np.array(data.array("top_logprobs", index)))[:, : needs.top_n]
    own = np.stack([-data.array("logprob", index), np.nan_to_num(data.array("entropy", index))], axis=-1)
    signals = StepSignals(hidden, attention, layers, top)
    return features.stream().stacked_rows(signals, torch.from_numpy(own).float())


def check_signals(data: TrainingSet, features: FeatureSet) -> None:
    """Refuse features that the caches cannot give. Raises TrainingError."""
    needs = features.needs
    for cache in data.caches:
        lags = cache.array("attention").shape[-1] if "attention" in cache.names else 0
        top = cache.array("top_logprobs").shape[-1] if "top_logprobs" in cache.names else 0
        absent = [f"layer {layer}" for layer in needs.hidden_layers if layer not in cache.hidden_layers]
        absent += [f"{needs.attention_lags} attention lags"] if needs.attention_lags > lags else []
        absent += [f"{needs.top_n} probabilities"] if needs.top_n > top else []
        is_whole = needs.prompt_rows or needs.prompt_attention or needs.input_ids
        absent += ["rows of the prompt"] if is_whole else []
        if absent:
            raise TrainingError(f"{cache.folder} lacks {', '.join(absent)}. Choose others, or generate it anew.")


def _token_weights(
    labels: torch.Tensor, is_fact: torch.Tensor, starts: Sequence[int], pos_weight: float
) -> torch.Tensor:
    weights = token_weights(labels, is_fact)
    if pos_weight:
        weights = torch.where(labels == 1, pos_weight, 1.0) * (labels != IGNORED)
    for start, end in zip(starts, starts[1:], strict=False):
        weights[start:end] /= (weights[start:end] > 0).sum().clamp(min=1)
    return weights


def make_batch(data: HeadData, indices: Sequence[int], device: torch.device) -> HeadBatch:
    """The answers of these numbers."""
    spans = [(data.starts[i], data.starts[i + 1]) for i in indices]
    longest = max((end - start for start, end in spans), default=1)
    size = (len(indices), longest)
    rows = torch.zeros(*size, data.rows.shape[1])
    labels, weights = torch.full(size, IGNORED), torch.zeros(size)
    is_real, is_content, is_fact = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    for place, (i, (start, end)) in enumerate(zip(indices, spans, strict=True)):
        rows[place, : end - start] = data.rows[start:end].float()
        labels[place, : end - start] = data.labels[start:end]
        weights[place, : end - start] = data.token_weights[start:end]
        is_fact[place, : end - start] = data.is_fact[start:end]
        is_real[place, : end - start] = True
        is_content[place, : int(data.counts[i])] = True
    chosen = torch.tensor(list(indices), dtype=torch.int64)
    of_answers = (data.answer_labels[chosen], data.answer_weights[chosen])
    tensors = (rows, is_real, is_content, labels, is_fact, weights, *of_answers)
    return HeadBatch(*(tensor.to(device) for tensor in tensors))


def _claims(labels: torch.Tensor, is_content: torch.Tensor) -> torch.Tensor:
    masks, place = [], 0
    for label, run in groupby(labels.tolist()):
        length = len(list(run))
        if label != IGNORED:
            mask = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
            mask[place : place + length] = True
            masks.append(mask)
        place += length
    return torch.stack([*masks, is_content])
