"""The scope of a calibration, from the answers it is fitted to: sets, styles, lengths, and a detector of other prompts.

Prompts that ask for no fact (`scope_prompts.json`, written for this) are read by the language model once; prompts of
the calibration come from the cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.answers import AnswerRow
from trainers.cache import FeatureCache
from trainers.prompts import SYSTEM
from uqchat.config import GenerationConfig
from uqchat.engine.backend import FinishEvent, Request
from uqchat.engine.decode import Engine
from uqchat.engine.prompt import build_prompt
from uqchat.errors import InputError
from uqchat.models import LoadedModel
from uqchat.scope import Scope, ScopeDetector
from uqchat.types import Message, Signals

PROMPTS = Path(__file__).with_name("scope_prompts.json")
DEPTH = 16 / 30  # of the layers, where prompts of the calibration are least often taken for others


def outside_prompts() -> list[str]:
    """Prompts that ask for no fact: greetings, poems, code, translations, other languages, opinions, sums, nonsense."""
    return [prompt for prompts in json.loads(PROMPTS.read_text(encoding="utf-8")).values() for prompt in prompts]


def prompt_states(model: LoadedModel, prompts: Sequence[Sequence[Message]], layer: int) -> np.ndarray:
    """(N, D) float32: the hidden state at the last position of each prompt, `layer` as in `Signals.hidden_layers`."""
    engine = Engine(model.model, model.tokenizer)
    place: dict[int, int] = {}
    for number, messages in enumerate(prompts):
        ids = build_prompt(list(messages), model.tokenizer, model.context_window, 1, engine.tags, 1)
        request = Request(ids.ids, GenerationConfig(max_new_tokens=1), signals=Signals(hidden_layers=(layer,)))
        place[engine.add(request)] = number
    states: dict[int, np.ndarray] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, FinishEvent):
                if event.error is not None:
                    raise event.error
            else:
                states[place[event.key]] = event.step.signals.hidden[layer].float().cpu().numpy()
    return np.stack([states[number] for number in range(len(prompts))])


def layer_for(caches: Sequence[FeatureCache]) -> int:
    """The hidden layer, cached in all, that is nearest to the middle of the model.

    Raises:
        InputError: no hidden layer is in all of them.
    """
    shared = set.intersection(*(set(cache.hidden_layers) for cache in caches))
    if not shared:
        raise InputError("A scope needs hidden states of one layer in every cache; generate them with --layers.")
    return min(sorted(shared), key=lambda layer: abs(layer - DEPTH * max(shared)))


def fit_detector(
    model: LoadedModel, caches: Sequence[FeatureCache], splits: Sequence[str], layer: int | None = None
) -> ScopeDetector:
    """Prompts of the cached answers against `outside_prompts`, those in the prompt styles of the caches in turn.

    Raises:
        InputError: no hidden states, or too few answers.
    """
    layer = layer_for(caches) if layer is None else layer
    inside = [
        cache.array(f"hidden_{layer}")[cache.span(i).start].astype(np.float32)
        for cache in caches
        for i, answer in enumerate(cache.answers)
        if answer.answer_ids and answer.sample == 0 and (not splits or answer.split in splits)
    ]
    if not inside:
        raise InputError(f"No answer of {', '.join(splits)} in these caches.")
    styles = sorted({answer.style for cache in caches for answer in cache.answers} & set(SYSTEM)) or ["page"]
    outside = [_messages(prompt, style) for prompt in outside_prompts() for style in styles]
    return ScopeDetector.fit(np.stack(inside), prompt_states(model, outside, layer), layer)


def _messages(prompt: str, style: str) -> list[Message]:
    return [*([Message("system", SYSTEM[style])] if SYSTEM[style] else []), Message("user", prompt)]


def scope_of(
    name: str, answers: Sequence[AnswerRow], fingerprint: str | None, detector: ScopeDetector | None = None
) -> Scope:
    """The scope of a calibration that is fitted to these answers; its longest answer is the longest of theirs.

    Raises:
        InputError: no answers, or no name.
    """
    if not answers:
        raise InputError("A calibration needs labelled answers; there is none.")
    return Scope(
        name,
        tuple(sorted({answer.style for answer in answers})),
        tuple(sorted({answer.set for answer in answers})),
        max(len(answer.answer_ids) for answer in answers),
        tuple(sorted({answer.temperature for answer in answers})),
        fingerprint,
        detector,
    )
