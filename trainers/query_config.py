"""How the query is trained: data, loop, LoRA, what is asked and what keeps the model close. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainers.loop_config import LoopConfig
from trainers.lora import LoraConfig
from trainers.training_set import DataConfig
from uqchat.errors import InputError


@dataclass(frozen=True)
class QueryLoop(LoopConfig):
    """The loop's settings with defaults for a language model in place of a small network."""

    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    evaluations_per_epoch: int = 3
    patience: int = 3
    checkpoint_every: int = 25


@dataclass(frozen=True)
class TrainConfig:
    """How the query is trained."""

    data: DataConfig
    loop: QueryLoop
    lora: LoraConfig
    model: str = "embedded"
    """`embedded`, a Hub id, a folder or a GGUF file."""
    device: str = ""
    """Empty chooses."""
    dtype: str = "float32"
    """Number format of the base; on CPU float32 is the fastest to train in."""
    quantization: str = ""
    """`bnb-4bit` is QLoRA: the base in NF4, the LoRA in float32."""
    layout: Literal["chat", "text"] = "chat"
    """What stands before the query, see `uqchat.estimators.query_format`."""
    level: Literal["answer", "sentence"] = "answer"
    """What one reply judges when it is used; training is on whole answers."""
    limit: int = 0
    """Answers to train on at most, 0 is all of them."""
    validation_limit: int = 400
    """Answers of the validation part at most, 0 is all of them."""
    max_wrong: float = 0.0
    """Wrong answers for each right one at most, inside each set and style; 0 is no limit."""
    divergence: Literal["jsd", "forward_kl", "reverse_kl"] = "jsd"
    """What keeps the changed model close to the base."""
    divergence_on: Literal["own", "gold", "both", "none"] = "both"
    """On the model's answers (no forward more with the change), on the first reference, on both."""
    divergence_weight: float = 1.0
    """Kappa of the paper; 0 or more."""
    max_states_gb: float = 2.0
    """Memory for states of the blocks below `first_layer`, kept so that they are computed once; 0 is off."""
    output: str = ""
    """Folder of the finished query; empty is `artifact` in the run's folder."""

    def __post_init__(self) -> None:
        """Refuse values outside their range. Raises InputError."""
        for name, allowed in (
            ("layout", ("chat", "text")),
            ("level", ("answer", "sentence")),
            ("divergence", ("jsd", "forward_kl", "reverse_kl")),
            ("divergence_on", ("own", "gold", "both", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be {' or '.join(allowed)}.")
        for name in ("limit", "validation_limit", "max_wrong", "divergence_weight", "max_states_gb"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} = {getattr(self, name)!r} is not allowed; it must be 0 or more.")
