"""Answers of a tiny model with its real signals and labels that its states give away, as a cache. Knows no trainer."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import tiny_model
from trainers.answers import IGNORED, AnswerRow, write_labels
from trainers.cache import CacheWriter, FeatureCache
from trainers.capture import to_arrays
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.fingerprint import template_hash, weights_fingerprint
from uqchat.language_model import LanguageModel, from_loaded
from uqchat.types import Signals, TokenStep

SIGNALS = Signals(top_n=5, entropy=True, hidden_layers=(1, 2), attention_lags=3)
SETS = ("one", "two")


def make_model() -> LanguageModel:
    """The model of all these answers."""
    return from_loaded(tiny_model())


def prompt_of(model: LanguageModel, question: str) -> tuple[int, ...]:
    """Ids of a question as the only user message."""
    messages = [{"role": "user", "content": question}]
    return tuple(model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def forced_steps(
    model: LanguageModel, question: str, answer_ids: tuple[int, ...], signals: Signals = SIGNALS
) -> list[TokenStep]:
    """Steps of a given answer."""
    request = Request(prompt_of(model, question), GenerationConfig(max_new_tokens=0), answer_ids, signals)
    engine = Engine(model.model, model.tokenizer)
    return [event.step for event in engine.stream([request]) if isinstance(event, StepEvent)]


def make_tiny_cache(folder: Path, model: LanguageModel, count: int = 160, seed: int = 0) -> FeatureCache:
    """`count` answers of 2 to 7 random tokens and the end token, complete and labelled.

    An answer is wrong when a direction of its mean state of layer 2 is above the median; a token when the state that
    has read it is. The first token of each answer is ignored.
    """
    generator = torch.Generator().manual_seed(seed)
    end = model.tokenizer.eos_token_id
    rows, features, means, reads = [], [], [], []
    for number in range(count):
        length = int(torch.randint(2, 8, (), generator=generator))
        ids = (*torch.randint(10, 200, (length,), generator=generator).tolist(), end)
        question = f"What is {number}?"
        steps = forced_steps(model, question, ids)
        states = torch.stack([step.signals.hidden[2] for step in steps])[1:, 0]
        reads.append(states)
        means.append(states.mean().item())
        features.append(to_arrays(steps, SIGNALS))
        rows.append(_row(number, question, ids, steps))
    middle, token_middle = sorted(means)[count // 2], torch.cat(reads).median()
    writer = CacheWriter(folder, _info(model))
    writer.append(rows, features)
    writer.finish()
    labelled = []
    for row, mean, states in zip(rows, means, reads, strict=True):
        labels = (IGNORED, *(states > token_middle).long().tolist()[1:], IGNORED)
        labelled.append(AnswerRow(**{**_values(row), "is_error": mean >= middle, "token_labels": labels}))
    write_labels(folder, labelled)
    return FeatureCache.open(folder)


def _row(number: int, question: str, ids: tuple[int, ...], steps: list[TokenStep]) -> AnswerRow:
    return AnswerRow(
        id=f"tiny-{number:03d}",
        set=SETS[number % 2],
        split="train",
        category="",
        question=question,
        references=("x",),
        style="page",
        messages=({"role": "user", "content": question},),
        answer_ids=ids,
        spans=tuple(step.span for step in steps),
        text="".join(step.text for step in steps),
        finish_reason="stop",
    )


def _values(row: AnswerRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _info(model: LanguageModel) -> dict[str, str]:
    return {
        "model": model.name,
        "weights_fingerprint": weights_fingerprint(model.model),
        "chat_template_hash": template_hash(model.tokenizer),
        "dtype": "float32",
    }
