"""Small answers and features for tests of the trainers. They know no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainers.answers import AnswerRow
from trainers.cache import CacheWriter


def make_row(number: int = 0, num_tokens: int = 3, **changes: Any) -> AnswerRow:
    """An answer "aaa": one character per token, and the end token."""
    values: dict[str, Any] = {
        "id": f"made-{number:04d}",
        "set": "made",
        "split": "train",
        "category": "capital",
        "question": f"What is the capital of land {number}?",
        "references": ("aaa", "Åland\u2028"),
        "style": "page",
        "messages": ({"role": "user", "content": f"What is the capital of land {number}?"},),
        "answer_ids": tuple(range(num_tokens)),
        "spans": tuple((min(i, num_tokens - 1), min(i + 1, num_tokens - 1)) for i in range(num_tokens)),
        "text": "a" * (num_tokens - 1),
        "finish_reason": "stop",
    }
    return AnswerRow(**{**values, **changes})


def make_features(row: AnswerRow, seed: int = 0, width: int = 4) -> dict[str, np.ndarray]:
    """Random arrays with the names and dtypes that generation writes."""
    random, n = np.random.default_rng([seed, *row.id.encode()]), len(row.answer_ids)
    return {
        "hidden_1": random.normal(size=(n, width)).astype(np.float16),
        "attention": random.random((n, 2, 2, 3)).astype(np.float16),
        "top_logprobs": np.sort(-random.random((n, 5)).astype(np.float32))[:, ::-1].copy(),
        "logprob": -random.random(n).astype(np.float32),
        "entropy": random.random(n).astype(np.float32),
        "token_id": np.array(row.answer_ids, np.int32),
    }


def make_cache(folder: Path, rows: list[AnswerRow]) -> dict[str, np.ndarray]:
    """A complete folder of these answers; returns what its arrays hold."""
    writer = CacheWriter(folder, {"model": "made"})
    features = [make_features(row) for row in rows]
    writer.append(rows, features)
    writer.finish()
    return {name: np.concatenate([arrays[name] for arrays in features]) for name in features[0]}
