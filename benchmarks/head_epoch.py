"""An epoch of UQ-head training from cached features against one that runs the language model again for its features."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import compare, interleave, load_endless, prompt_of, save
from trainers.answers import AnswerRow, write_labels
from trainers.cache import CacheWriter, FeatureCache
from trainers.capture import to_arrays
from trainers.head_data import HeadData, make_head_data
from trainers.loop import epoch_order
from trainers.loop_config import LoopConfig
from trainers.probe_data import spread
from trainers.training_set import DataConfig, TrainingSet, read_training_set
from trainers.uq_head import Standardised, TrainConfig, head_loss
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.features import make_features
from uqchat.heads.modules import make_head
from uqchat.language_model import LanguageModel
from uqchat.types import Signals, TokenStep

ANSWERS, PROMPT, NEW, BATCH = 32, 60, 24, 32
SIGNALS = Signals(top_n=5, entropy=True, hidden_layers=(16,), attention_lags=3)


def read_again(model: LanguageModel, answers: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[TokenStep]]:
    """The steps of given answers by teacher forcing, batched, as training without a cache needs them every epoch."""
    model.engine.lineup.prefixes.clear()
    requests = [Request(p, GenerationConfig(max_new_tokens=0), ids, SIGNALS) for p, ids in answers]
    steps: list[list[TokenStep]] = [[] for _ in requests]
    for event in model.engine.stream(requests):
        if isinstance(event, StepEvent):
            steps[event.key].append(event.step)
    return steps


def made_answers(model: LanguageModel) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts that share no beginning, and random answers of one length."""
    random = np.random.default_rng(0)
    size = len(model.tokenizer)
    prompts = [prompt_of(model, PROMPT, f"{number} lighthouses stand there.") for number in range(ANSWERS)]
    return [(prompt, tuple(int(i) for i in random.integers(100, size, NEW))) for prompt in prompts]


def cached(folder: Path, steps: list[list[TokenStep]]) -> TrainingSet:
    """Those answers as a labelled cache."""
    rows = [_row(number, own) for number, own in enumerate(steps)]
    writer = CacheWriter(folder, {"model": "embedded"})
    writer.append(rows, [to_arrays(own, SIGNALS) for own in steps])
    writer.finish()
    write_labels(folder, rows)
    assert FeatureCache.open(folder).num_tokens == ANSWERS * NEW
    return read_training_set(DataConfig(caches=(str(folder),)), lambda line: None)


def _row(number: int, steps: list[TokenStep]) -> AnswerRow:
    return AnswerRow(
        id=str(number),
        set="made",
        split="train",
        category="",
        question="",
        references=("x",),
        style="page",
        messages=(),
        answer_ids=tuple(step.token_id for step in steps),
        spans=tuple(step.span for step in steps),
        text="".join(step.text for step in steps),
        finish_reason="length",
        is_error=bool(number % 2),
        token_labels=tuple(int(i % 2) for i in range(len(steps))),
    )


def one_epoch(module: Standardised, data: HeadData, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """Every answer once, in batches."""
    loss = head_loss(data, 1.0, 1.0)
    order = epoch_order(len(data.data), 0, epoch)
    for start in range(0, len(order), BATCH):
        value, weight = loss(module, order[start : start + BATCH])
        optimizer.zero_grad()
        (value / weight).backward()
        optimizer.step()


def main(repeats: int) -> None:
    """The ratio of the two, in answers per second."""
    model = load_endless()
    answers = made_answers(model)
    with tempfile.TemporaryDirectory() as folder:
        data = cached(Path(folder) / "cache", read_again(model, answers))
        config = TrainConfig(DataConfig(caches=("made",)), LoopConfig())
        features = make_features(config.extractors, data.shape)
        material = make_head_data(data, features)
        head = make_head(config.head_type, features.width, config.head_config.options).train()
        module = Standardised(head, *spread(material.rows))
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        epochs = iter(range(1_000_000))

        def from_cache() -> float:
            one_epoch(module, material, optimizer, next(epochs))
            return float(ANSWERS)

        def from_model() -> float:
            read_again(model, answers)
            return from_cache()

        rates = interleave({"cached features": from_cache, "model run again": from_model}, repeats)
    claim = "an epoch of head training from cached features against running the model again"
    row = compare(claim, rates, "cached features", "model run again", 20.0, "answers/s")
    save("head_epoch", [row], {"answers": ANSWERS, "prompt": PROMPT, "new": NEW, "batch": BATCH, "repeats": repeats})


if __name__ == "__main__":
    main(3)
