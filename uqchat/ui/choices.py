"""What the browser keeps of the settings and of how answers are drawn. Knows no component and no event.

The values are kept with the user they belong to: where people log in, one browser may serve several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, get_args, get_type_hints

from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.render import RiskView

_DEFAULT, _VIEW = GenerationConfig(), RiskView()
_MAX_NAME = 500  # an estimator's name may be a folder


@dataclass(frozen=True)
class Choices:
    """Values of the controls, in the order in which handlers take them."""

    system: str = ""
    max_new_tokens: int | None = _DEFAULT.max_new_tokens
    seed: int | None = _DEFAULT.seed
    temperature: float = _DEFAULT.temperature
    top_p: float = _DEFAULT.top_p
    min_p: float = _DEFAULT.min_p
    repetition_penalty: float = _DEFAULT.repetition_penalty
    top_k: int | None = _DEFAULT.top_k
    stop_strings: str = ""
    estimator: str = _VIEW.estimator
    scale: str = _VIEW.scale
    mode: str = _VIEW.mode
    listed: tuple[str, ...] | None = None
    """None: those that are listed at first, whatever the model offers."""

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Self:
        """Values as the components give them."""
        return cls(*values[:-1], listed=None if values[-1] is None else tuple(values[-1]))

    @property
    def values(self) -> list[Any]:
        """Values as the components take them."""
        return [getattr(self, one.name) for one in fields(self)][:-1] + [self.listed and list(self.listed)]

    @property
    def view(self) -> tuple[str, str, str, tuple[str, ...] | None]:
        """How answers are drawn: estimator, scale, mode, estimators to list."""
        return self.estimator, self.scale, self.mode, self.listed


def to_keep(user: str, choices: Choices) -> dict[str, Any]:
    """What the browser is to keep."""
    return {"user": user, "values": dict(zip(_NAMES, choices.values, strict=True))}


def from_kept(user: str, kept: object) -> Choices:
    """What the browser kept for this user; the defaults where it kept nothing that can be used."""
    values = kept.get("values") if isinstance(kept, Mapping) and kept.get("user") == user else None
    if not isinstance(values, Mapping) or set(values) != set(_NAMES):
        return Choices()
    try:
        choices = Choices.from_values([values[name] for name in _NAMES])
        return choices if _is_usable(choices) else Choices()
    except (InputError, TypeError):
        return Choices()


def _is_usable(choices: Choices) -> bool:
    """Whether every control can show its value; whether an estimator is there is known when the model is."""
    hints = get_type_hints(RiskView)
    numbers = [choices.temperature, choices.top_p, choices.min_p, choices.repetition_penalty]
    counts = [choices.max_new_tokens, choices.seed, choices.top_k]
    return (
        choices.scale in get_args(hints["scale"])
        and choices.mode in get_args(hints["mode"])
        and all(isinstance(text, str) for text in (choices.system, choices.stop_strings))
        and all(_is_name(name) for name in (choices.estimator, *(choices.listed or ())))
        and all(isinstance(number, int | float) for number in numbers)
        and all(count is None or isinstance(count, int) for count in counts)
        and _in_range(choices)
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _MAX_NAME


def _in_range(choices: Choices) -> bool:
    GenerationConfig(
        max_new_tokens=_DEFAULT.max_new_tokens if choices.max_new_tokens is None else choices.max_new_tokens,
        temperature=choices.temperature,
        top_p=choices.top_p,
        min_p=choices.min_p,
        repetition_penalty=choices.repetition_penalty,
        top_k=choices.top_k or 0,
        seed=choices.seed or 0,
    )
    return True


_NAMES = tuple(one.name for one in fields(Choices))
