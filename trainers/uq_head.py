"""Trains an uncertainty head on cached features: `python -m trainers uq-head --run-dir D --caches '["a", "b"]'`.

Tokens and whole answers are learned together: a token head's answer has the mean logit of its tokens, end token left
out, which is what `uqchat` shows for it; a claim head's is one claim of all of them. The language model is not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from trainers.common import LoopConfig, Run, add_run_arguments, read_settings, run_trainer, train_loop
from trainers.head_data import HeadBatch, HeadData, make_batch, make_head_data
from trainers.head_metrics import head_metrics
from trainers.probe_data import spread
from trainers.run_folder import ARTIFACT, command_line
from trainers.training_set import DataConfig, read_parts
from uqchat.errors import InputError
from uqchat.features import make_features
from uqchat.heads import HeadConfig, assemble, save_head
from uqchat.heads.assemble import FIRST_WEIGHTS
from uqchat.heads.base import ClaimHead, TokenHead
from uqchat.heads.modules import HEADS, make_head


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a head and its training."""

    data: DataConfig
    loop: LoopConfig
    head_type: str = "compact"
    """One of `uqchat.heads.modules.HEADS`."""
    head_dim: int = 96
    """Width of heads with an encoder, 1 or more."""
    num_inner: int = 256
    """Inner units of the encoder of `compact`, 1 or more."""
    n_layers: int = 2
    """Of the encoder, 1 or more."""
    n_heads: int = 4
    """Of the encoder; they divide the width."""
    dropout: float = 0.2
    """Inside the head, in [0, 1]."""
    is_causal: bool = False
    """Whether a token's score never changes once it is given; the other kind sees what follows, and is better."""
    hidden_layers: tuple[int, ...] = (16,)
    """Hidden states that are read; [] is none."""
    attention_lags: int = 3
    """Attention on so many newest tokens, of all layers and heads; 0 is none."""
    top_n: int = 5
    """Largest probabilities; 0 is none."""
    use_confidence: bool = True
    """Whether -log p of the token and entropy are read."""
    use_position: bool = True
    """Whether the token's place in the answer is read."""
    token_weight: float = 1.0
    """Of the tokens' loss, 0 or more."""
    answer_weight: float = 1.0
    """Of the answers' loss, 0 or more."""
    pos_weight: float = 0.0
    """Weight of what is wrong; 0 makes right and wrong weigh the same."""
    output: str = ""
    """Folder of the finished head; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse what cannot be. Raises InputError."""
        if self.head_type not in HEADS:
            raise InputError(f"Unknown head type {self.head_type!r}. Known: {', '.join(HEADS)}.")
        if min(self.token_weight, self.answer_weight, self.pos_weight, self.attention_lags, self.top_n) < 0:
            raise InputError("token_weight, answer_weight, pos_weight, attention_lags and top_n must be 0 or more.")
        if not self.extractors:
            raise InputError("The head reads nothing: name hidden layers, attention, probabilities or confidence.")

    reads_prompt: ClassVar[bool] = False  # the caches hold the answers' rows alone

    @property
    def extractors(self) -> tuple[dict[str, Any], ...]:
        """The features, as a head's configuration names them."""
        found: list[dict[str, Any]] = []
        if self.attention_lags:
            lags = self.attention_lags
            found.append({"name": "basic_attention", "layer_nums": "all", "attn_history_sz": lags, "pool": False})
        found += [{"name": "token_probabilities", "top_n": self.top_n}] if self.top_n else []
        if self.hidden_layers:
            found.append({"name": "basic_hidden_states", "layer_nums": list(self.hidden_layers)})
        found += [{"name": "token_confidence"}] if self.use_confidence else []
        return tuple([*found, *([{"name": "token_position"}] if self.use_position else [])])

    @property
    def head_config(self) -> HeadConfig:
        """As it is written into the artifact; settings that the type does not know are left out."""
        known = HEADS[self.head_type].options
        return HeadConfig(self.head_type, self.extractors, {k: getattr(self, k) for k in known if hasattr(self, k)})


class Standardised(nn.Module):
    """A head behind features of mean 0 and deviation 1; `folded` puts both into the head's first layer."""

    def __init__(self, head: TokenHead | ClaimHead, mean: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, batch: HeadBatch) -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
        """Logits of all tokens (B, S), or of each answer's claims, and of the answers (B,)."""
        rows = (batch.rows - self.mean) / self.scale
        if isinstance(self.head, ClaimHead):
            logits = self.head(rows, batch.claims(), batch.is_real)
            return [of_answer[:-1] for of_answer in logits], torch.stack([of_answer[-1] for of_answer in logits])
        logits = self.head(rows, batch.is_real)
        count = batch.is_content.sum(1).clamp(min=1)
        return logits, logits.where(batch.is_content, 0.0).sum(1) / count

    def folded(self) -> dict[str, torch.Tensor]:
        """The head's weights for features as they come."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.head.state_dict().items()}
        first = next(name for name in FIRST_WEIGHTS if name in weights)
        bias = first.replace("weight", "bias")
        mean, scale = self.mean.cpu().double(), self.scale.cpu().double()
        matrix = weights[first].double() / scale
        weights[bias] = (weights[bias].double() - matrix @ mean).float()
        weights[first] = matrix.float()
        return weights


def head_loss(
    data: HeadData, token_weight: float, answer_weight: float
) -> Callable[[nn.Module, Sequence[int]], tuple[torch.Tensor, float]]:
    """Weighted binary cross-entropy of labelled tokens (or claims) and of answers, summed, and the sum of weights."""

    def loss(module: nn.Module, indices: Sequence[int]) -> tuple[torch.Tensor, float]:
        device = next(module.parameters()).device
        batch = make_batch(data, indices or [0], device)
        logits, answers = module(batch)
        own = batch.answer_weights * answer_weight * bool(indices)
        total = (cross_entropy(answers.float(), batch.answer_labels, reduction="none") * own).sum()
        weight = own.sum().item()
        if token_weight and isinstance(logits, list):
            logits, labels, each = _claim_labels(logits, batch)
        else:
            labels, each = batch.labels, batch.token_weights
        each = each * token_weight * bool(indices)
        wanted = labels.clamp(min=0).float()
        total = total + (cross_entropy(logits.float(), wanted, reduction="none") * each).sum()
        return total, weight + each.sum().item()

    return loss


def _claim_labels(logits: list[torch.Tensor], batch: HeadBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, labels and weights of all claims; a claim weighs what its tokens weigh."""
    labels, weights = [], []
    for own, label, weight in zip(batch.claims(), batch.labels, batch.token_weights, strict=True):
        labels += [label[mask][0] for mask in own[:-1]]
        weights += [weight[mask].sum() for mask in own[:-1]]
    if not labels:
        empty = batch.token_weights.new_zeros(0)
        return torch.cat(logits), empty, empty
    return torch.cat(logits), torch.stack(labels), torch.stack(weights)


def train(config: TrainConfig, run: Run) -> Mapping[str, Any] | None:
    """Train, and write the head's folder; the result, or None when the run was asked to stop.

    Raises:
        UqchatError: no usable data, features that were not cached, a full disk, a loss that is no number.
    """
    train_part, validation = read_parts(config.data, run.log, needs_both=config.answer_weight > 0)
    shape, head_config = train_part.shape, config.head_config
    features = make_features(head_config.extractors, shape)
    material = make_head_data(train_part, features, config.pos_weight)
    torch.manual_seed(config.loop.seed)
    head = make_head(config.head_type, features.width, head_config.options)
    if head.encoder is not None and head.reads_prompt:
        raise InputError(f"A head of type {config.head_type} reads the prompt's rows, which the caches do not hold.")
    module = Standardised(head, *spread(material.rows))
    run.log(f"{features.describe()}; {sum(p.numel() for p in head.parameters()):,} weights")
    evaluate = head_metrics(make_head_data(validation, features, config.pos_weight)) if len(validation) else None
    loss = head_loss(material, config.token_weight, config.answer_weight)
    result = train_loop(run, module, len(train_part), loss, config.loop, evaluate, "watched")
    if result.is_stopped:
        return None
    folder = Path(config.output) if config.output else run.path / ARTIFACT
    metrics = {f"validation {name}": value for name, value in result.metrics.items() if name != "watched"}
    if run.is_main:
        info = train_part.origin(metrics=metrics, command=command_line(), seed=config.loop.seed)
        save_head(assemble(head_config, module.folded(), shape, source=str(folder), info=info), folder)
    return {"artifact": str(folder), "steps": result.steps, "metrics": metrics}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainers uq-head`."""
    add_run_arguments(parser, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """Begin or resume a run. Raises what `train` raises."""
    return run_trainer("uq-head", args, read_settings(TrainConfig, args), train)
