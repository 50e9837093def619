"""What feature extractors share: the contract, the shape of a language model, layer and head numbers. Knows no tensor
of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch

from uqchat.errors import InputError
from uqchat.types import Signals, StepSignals

Layout = Literal["current", "legacy"]
HiddenIndex = Literal["layers", "tuple"]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """L, H (query heads), D and V of a language model."""

    num_layers: int
    num_heads: int
    hidden_size: int
    vocab_size: int = 0

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """The shape of a transformers model; 0 heads when it has no attention."""
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        return cls(config.num_hidden_layers, heads, config.hidden_size, config.vocab_size)

    def __str__(self) -> str:
        return f"{self.num_layers} layers x {self.num_heads} heads, hidden size {self.hidden_size}"


@dataclass(frozen=True, slots=True)
class Context:
    """What an extractor is made for."""

    shape: ModelShape
    layout: Layout
    hidden_index: HiddenIndex
    model: Any = None

    @classmethod
    def of(cls, model: Any, layout: Layout, hidden_index: HiddenIndex) -> Context:
        """For a model, or for a shape alone."""
        if isinstance(model, ModelShape):
            return cls(model, layout, hidden_index)
        return cls(ModelShape.of(model), layout, hidden_index, model)


@dataclass(frozen=True, slots=True)
class Part:
    """Signals of `count` neighbouring rows, each tensor with a leading dimension of that size."""

    signals: StepSignals
    count: int
    first: int
    """Number of the first of them."""
    prompt_length: int
    is_prompt: bool
    before: StepSignals | None = None
    """The row before the first one, (1, ...); None at the beginning."""
    confidence: torch.Tensor | None = None
    """(count, 2): -log p of each row's own token, and the entropy (nats); None on prompt rows."""


class Extractor(Protocol):
    """Makes a few numbers of each row."""

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]]
    """Settings it knows."""
    takes_anything: ClassVar[bool]
    """Whether the reference reads none of its settings, so that all are left out in silence."""
    width: int
    needs: Signals

    @classmethod
    def make(cls, options: Mapping[str, Any], context: Context) -> Extractor:
        """From the settings of a published configuration; raises InputError when one is missing or impossible."""

    def rows(self, part: Part) -> torch.Tensor:
        """(count, width)."""


def number(options: Mapping[str, Any], key: str, owner: str, default: int | None = None, largest: int = 10_000) -> int:
    """A whole number from 1 on out of the settings.

    Raises:
        InputError: missing without a default, or something else.
    """
    value = options.get(key, default)
    if value is None:
        raise InputError(f"{owner} has no `{key}`: the configuration is incomplete, or older than this format.")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise InputError(f"`{key}` of {owner} must be a whole number from 1 to {largest}; got {str(value)[:80]!r}.")
    return value


def numbers(value: Any, size: int, what: str, last: int | None = None) -> tuple[int, ...]:
    """Numbers of layers or heads: one number or a list; negative ones count from the end.

    Args:
        size: what a negative number is added to. last: the largest number there is; None is size - 1.

    Raises:
        InputError: not such numbers, or outside the model.
    """
    last = size - 1 if last is None else last
    listed = list(value) if isinstance(value, list | tuple) else [value]
    for item in listed:
        if isinstance(item, bool) or not isinstance(item, int):
            raise InputError(f"`{what}` must be `all`, a number or a list of numbers; got {str(value)[:80]!r}.")
        if not -size <= item <= last:
            raise InputError(f"`{what}` names {item}, but this model has {-size} to {last}.")
    if not listed:
        raise InputError(f"`{what}` is an empty list.")
    return tuple(item + size if item < 0 else item for item in listed)


def all_or_numbers(value: Any, size: int, what: str) -> tuple[int, ...]:
    """`numbers`, or "all" of them."""
    return tuple(range(size)) if value == "all" else numbers(value, size, what)
