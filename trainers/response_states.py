"""Hidden states at the positions that predict a response, from one pass of a frozen model. Knows no head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainers.answers import IGNORED
from trainers.lessons import Lesson, pad_lessons
from trainers.lora import pad_left
from trainers.query_lower import by_length

ROWS = 8  # lessons in one forward


@dataclass(frozen=True, eq=False)
class ResponseStates:
    """States and the ids that came after them, of all responses in a row."""

    states: Tensor
    """(N, layers, D), the model's dtype, on the CPU."""
    targets: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.targets)


@torch.inference_mode()
def read_states(
    base: PreTrainedModel, lessons: Sequence[Lesson], layers: Sequence[int], report: Callable[[int], None]
) -> ResponseStates:
    """States of the given layers where a response's next token is to be predicted; wrong tokens are passed over.

    Args:
        layers: hidden states, 0 to L. report: told how many lessons are done.
    """
    parts = by_length([len(lesson.ids) for lesson in lessons], ROWS)
    order = torch.tensor([i for part in parts for i in part])
    states: list[Tensor] = []
    targets: list[Tensor] = []
    done = 0
    for part in parts:
        rows = [lessons[i] for i in part]
        ids, mask = pad_left([torch.tensor(row.ids) for row in rows])
        labels, wrong = pad_lessons(rows)
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        given = {"attention_mask": mask.long(), "position_ids": positions}
        found = base(
            input_ids=ids.to(base.device),
            **{name: tensor.to(base.device) for name, tensor in given.items()},
            output_hidden_states=True,
            logits_to_keep=1,
            use_cache=False,
        ).hidden_states
        width = labels.shape[1]
        kept = torch.stack([found[layer][:, -width - 1 : -1].cpu() for layer in layers], dim=2)  # (B, R, layers, D)
        wanted = (labels != IGNORED) & ~wrong
        counts = wanted.sum(dim=-1).tolist()
        states += kept[wanted].split(counts)
        targets += labels[wanted].split(counts)
        done += len(part)
        report(done)
    back = order.argsort().tolist()  # in the order given, whatever the parts were
    return ResponseStates(torch.cat([states[i] for i in back]), torch.cat([targets[i] for i in back]))
