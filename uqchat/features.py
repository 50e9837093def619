"""Captured tensors of token steps to rows of features, as uncertainty heads read them. Knows no head and no engine.

Alignment, here and nowhere else: a text of S tokens has rows 0 to S - 2. Row i is made at position i and describes the
prediction of token i + 1. In a prompt of P tokens, rows 0 to P - 2 belong to the prompt; the answer's first token has
row P - 1, its t-th (from 0) row P - 1 + t. A `TokenStep` carries the signals of the very position that predicted its
token, so a step is a row. The one exception is `final_output_ranks`, whose row i looks at how row i - 1 ranked token i.

Every path goes through `FeatureStream`: streamed steps, a given answer's steps, whole tensors (`rows_of_sequence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from operator import or_
from typing import Any

import torch

from uqchat.errors import InputError
from uqchat.features_answer import TokenConfidence, TokenPosition
from uqchat.features_attention import BasicAttention, LookbackLens
from uqchat.features_base import Context, Extractor, HiddenIndex, Layout, ModelShape, Part
from uqchat.features_hidden import (
    BasicHiddenStates,
    FinalOutputRanks,
    TokenProbabilitiesFromLayers,
    TokenSimilaritiesAdjacentLayers,
)
from uqchat.features_probabilities import TokenProbabilities
from uqchat.types import Signals, StepSignals, TokenStep

LAYOUTS: tuple[Layout, ...] = ("current", "legacy")
HIDDEN_INDEXES: tuple[HiddenIndex, ...] = ("layers", "tuple")

# By the last dotted part of the name in a published configuration; nothing is imported by name.
EXTRACTORS: dict[str, type[Extractor]] = {
    "basic_attention": BasicAttention,
    "token_probabilities": TokenProbabilities,
    "basic_hidden_states": BasicHiddenStates,
    "lookback_lens": LookbackLens,
    "token_probabilities_from_layers": TokenProbabilitiesFromLayers,
    "token_similarities_adjacent_layers": TokenSimilaritiesAdjacentLayers,
    "final_output_ranks": FinalOutputRanks,
    "token_confidence": TokenConfidence,
    "token_position": TokenPosition,
}


@dataclass(frozen=True)
class FeatureSet:
    """The extractors of one head, side by side in its order."""

    extractors: tuple[Extractor, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know: settings that were left out."""

    @property
    def width(self) -> int:
        """F, numbers per row."""
        return sum(extractor.width for extractor in self.extractors)

    @cached_property  # asked for with every token
    def needs(self) -> Signals:
        """What each step must carry."""
        return reduce(or_, (extractor.needs for extractor in self.extractors), Signals())

    def describe(self) -> str:
        """The widths, for error messages: `basic_attention 810 + token_probabilities 4`."""
        return " + ".join(f"{extractor.name} {extractor.width}" for extractor in self.extractors)

    def stream(self) -> FeatureStream:
        """Rows of one answer, as its steps come."""
        return FeatureStream(self)


def make_features(
    entries: Sequence[Mapping[str, Any]],
    model: torch.nn.Module | ModelShape,
    layout: Layout = "current",
    hidden_index: HiddenIndex = "layers",
) -> FeatureSet:
    """Extractors from the `feature_extractor` list of a published configuration.

    Args:
        entries: mappings with `name` (only its last dotted part counts) and settings.
        model: the language model, or its shape alone, which is enough to know widths and needs.
        layout: which keys and which order attention windows have.
        hidden_index: what a negative layer number of hidden states counts from: "layers" (-1 is the input of the last
            block) or "tuple" (-1 is the final, normed state).

    Raises:
        InputError: an unknown extractor, layout or setting, a missing or impossible value; the text names it.
    """
    if layout not in LAYOUTS:
        raise InputError(f"Unknown attention layout {layout!r}. Known: {', '.join(LAYOUTS)}.")
    if hidden_index not in HIDDEN_INDEXES:
        raise InputError(f"Unknown hidden index {hidden_index!r}. Known: {', '.join(HIDDEN_INDEXES)}.")
    if isinstance(entries, Mapping | str) or not isinstance(entries, Sequence) or not entries:
        raise InputError("`feature_extractor` must be a list of extractors with at least one entry.")
    context = Context.of(model, layout, hidden_index)
    made, notes = [], []
    for entry in entries:
        kind, options = _kind_of(entry)
        unused = sorted(set(options) - set(kind.options)) if not kind.takes_anything else []
        if unused:
            notes.append(f"{kind.name} does not know {', '.join(unused)}: left out")
        made.append(kind.make({k: v for k, v in options.items() if k in kind.options}, context))
    return FeatureSet(tuple(made), tuple(notes))


def _kind_of(entry: Any) -> tuple[type[Extractor], dict[str, Any]]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise InputError(f"A feature extractor must have a `name`; got {str(entry)[:80]!r}.")
    last = entry["name"].rsplit(".", 1)[-1]
    if last not in EXTRACTORS:
        raise InputError(f"Unknown feature extractor {last[:80]!r}. Known: {', '.join(EXTRACTORS)}.")
    return EXTRACTORS[last], {str(k): v for k, v in entry.items() if k != "name"}


class FeatureStream:
    """Rows of one answer, step by step. Feed every step, in order."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.prompt_length = 0  # P, known once the first step is here
        self.next_row = 0
        self._before: StepSignals | None = None

    def push(self, step: TokenStep) -> torch.Tensor:
        """The rows that this step brings: one, and before an answer's first the prompt's when they were captured.

        Returns:
            (n, F), float32.

        Raises:
            InputError: the step carries no signals, as stored tokens do.
        """
        signals = step.signals or StepSignals()
        if self.next_row == 0 and signals.prompt is not None:
            return torch.cat([self.prompt_rows(signals.prompt), self.rows_for(step)])
        return self.rows_for(step)

    def prompt_rows(self, signals: StepSignals) -> torch.Tensor:
        """Rows 0 to P - 2, (P - 1, F), from the signals of a prompt's earlier positions."""
        return self._rows(signals, _count(signals), is_prompt=True)

    def rows_for(self, step: TokenStep) -> torch.Tensor:
        """The row of one answer token, (1, F)."""
        own = torch.tensor([[-step.logprob, 0.0 if step.entropy is None else step.entropy]])
        return self._rows(_with_leading(step, self.features.needs), 1, is_prompt=False, confidence=own)

    def stacked_rows(self, signals: StepSignals, confidence: torch.Tensor) -> torch.Tensor:
        """The rows (T, F) of a whole answer whose prompt's rows are left out.

        Args:
            signals: each tensor with a leading dimension T. confidence: (T, 2), -log p and entropy.
        """
        return self._rows(signals, len(confidence), is_prompt=False, confidence=confidence)

    def _rows(
        self, signals: StepSignals, count: int, is_prompt: bool, confidence: torch.Tensor | None = None
    ) -> torch.Tensor:
        if not self.prompt_length:
            self.prompt_length = count + 1 if is_prompt else 1
        part = Part(signals, count, self.next_row, self.prompt_length, is_prompt, self._before, confidence)
        rows = [extractor.rows(part).float() for extractor in self.features.extractors]
        self.next_row += count
        if self.features.needs.input_ids and count:
            self._before = _last(signals)
        device = max((r.device for r in rows), key=lambda d: d.type != "cpu")
        return torch.cat([r.to(device) for r in rows], dim=-1)


def rows_of_sequence(
    features: FeatureSet,
    prompt_length: int,
    input_ids: torch.Tensor,
    *,
    hidden_states: Sequence[torch.Tensor] = (),
    attentions: Sequence[torch.Tensor] = (),
    logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """All rows of one text from whole tensors, as one eager forward gives them.

    Args:
        prompt_length: P, at least 1.
        input_ids: (S,), prompt and answer.
        hidden_states: L + 1 tensors (S, D). attentions: L tensors (H, S, S). logits: (S, V), raw.
            Only what the features need must be given.

    Returns:
        (S - 1, F), float32.
    """
    last = len(input_ids) - 1
    whole = _whole_signals(features.needs, prompt_length, input_ids, hidden_states, attentions, logits)
    stream = features.stream()
    rows = [stream.prompt_rows(_slice(whole, 0, prompt_length - 1))] if prompt_length > 1 else []
    own = _confidence(logits, input_ids) if logits is not None else None
    for i in range(prompt_length - 1, last):
        rows.append(stream._rows(_slice(whole, i, i + 1), 1, False, None if own is None else own[i : i + 1]))
    return torch.cat(rows)


def _confidence(logits: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """(S - 1, 2): -log p of the next id and the entropy at each position."""
    log_probs = logits[:-1].float().log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(dim=-1)
    return torch.stack([-log_probs.gather(1, input_ids[1:, None])[:, 0], entropy], dim=-1)


def _whole_signals(
    needs: Signals,
    prompt_length: int,
    input_ids: torch.Tensor,
    hidden_states: Sequence[torch.Tensor],
    attentions: Sequence[torch.Tensor],
    logits: torch.Tensor | None,
) -> StepSignals:
    window = on_prompt = top = None
    layers = needs.attention_layers if needs.attention_layers is not None else tuple(range(len(attentions)))
    if needs.has_attention:
        weights = torch.stack([attentions[layer] for layer in layers]).permute(2, 0, 1, 3).float()  # (S, layers, H, S)
        on_prompt = weights[..., :prompt_length].sum(dim=-1)
        query = torch.arange(len(weights), device=weights.device)
        keys = query[:, None] - torch.arange(needs.attention_lags, device=weights.device)  # (S, lags)
        index = keys.clamp(min=0)[:, None, None].expand(-1, *weights.shape[1:3], -1)
        window = weights.gather(3, index).where((keys >= 0)[:, None, None], 0.0)
    if needs.top_n and logits is not None:
        top = logits.float().log_softmax(dim=-1).topk(needs.top_n, dim=-1).values
    hidden = {layer: hidden_states[layer] for layer in needs.hidden_layers}
    return StepSignals(hidden, window, tuple(layers), top, on_prompt, input_ids)


def _slice(whole: StepSignals, start: int, stop: int) -> StepSignals:
    parts = {
        name: None if getattr(whole, name) is None else getattr(whole, name)[start:stop]
        for name in ("attention", "top_logprobs", "prompt_attention", "input_ids")
    }
    return replace(whole, hidden={k: v[start:stop] for k, v in whole.hidden.items()}, **parts)


def _with_leading(step: TokenStep, needs: Signals) -> StepSignals:
    """A step's signals with one leading dimension; top-n values come from its alternatives when those suffice."""
    signals = step.signals or StepSignals()
    if needs.has_tensors and step.signals is None:
        raise InputError("This token carries no signals of the model: generate the answer again, or score its text.")
    top = signals.top_logprobs
    if top is None and needs.top_n:
        top = torch.tensor([a.logprob for a in step.alternatives])
    if needs.top_n and (top is None or len(top) < needs.top_n):
        raise InputError(f"The {needs.top_n} largest log-probabilities are needed; this token carries {len(top)}.")
    whole = replace(signals, top_logprobs=top, prompt=None, hidden={k: v[None] for k, v in signals.hidden.items()})
    named = {n: getattr(whole, n) for n in ("attention", "top_logprobs", "prompt_attention", "input_ids")}
    return replace(whole, **{n: None if value is None else value[None] for n, value in named.items()})


def _count(signals: StepSignals) -> int:
    tensors = [*signals.hidden.values(), signals.attention, signals.prompt_attention, signals.input_ids]
    return next(len(t) for t in tensors if t is not None)


def _last(signals: StepSignals) -> StepSignals:
    hidden = {layer: states[-1:] for layer, states in signals.hidden.items()}
    return StepSignals(hidden, input_ids=None if signals.input_ids is None else signals.input_ids[-1:])
