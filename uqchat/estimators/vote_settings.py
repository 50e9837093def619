"""What an ensemble of voters is: how many, where they differ from the base, by how much. Knows no file, no step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

from torch import nn

from uqchat.engine.adapters import linear_size
from uqchat.engine.lineup import MAX_ROWS
from uqchat.errors import InputError

MAX_VOTERS = MAX_ROWS - 1  # the answer's own row takes a place too
PARAM_FILTER = "q_proj|v_proj"
TOP = 1 / 3
BLOCK_NUMBER = re.compile(r"\.(\d+)\.")  # in a layer's name, the first of them
Prediction = Literal["base", "mean"]
Noise = Literal["low_rank", "dense"]


@dataclass(frozen=True, slots=True)
class VoteSettings:
    """An ensemble's settings.

    Raises:
        InputError: a value outside what is allowed, on construction.
    """

    n_voters: int = 3
    """1 to 15; a single voter never disagrees, so its risk is 0."""
    param_filter: str = PARAM_FILTER
    """Regular expression, searched for in the names of linear layers: where voters differ from the base."""
    weight_noise: float = 0.2
    """Standard deviation of a voter's noise over that of the weight that it changes, 0 or more."""
    alpha: float = 1.0
    """0 to 1, how independent the voters are: noise of voter i = sqrt(alpha) own_i + sqrt(1 - alpha) shared."""
    rank: int = 8
    """Of each voter's change of a weight, at least 1; not used by dense noise."""
    prediction: Prediction = "base"
    """Whose distribution is shown and sampled: the base's own, or the mean of the voters'."""
    seed: int = 0
    """Of the noise."""
    noise: Noise = "low_rank"
    """"low_rank": a random sketch U V^T / sqrt(rank); "dense": independent noise on every weight."""
    top: float = TOP
    """Share of the blocks, from the last one down, in which voters differ, above 0 to 1: below those they are the
    answer's own row, so a voter costs that share of a row."""

    def __post_init__(self) -> None:
        """Check every value."""
        _require(_is_whole(self.n_voters) and 1 <= self.n_voters <= MAX_VOTERS, "n_voters", self, f"1 to {MAX_VOTERS}")
        _require(_is_number(self.weight_noise) and self.weight_noise >= 0, "weight_noise", self, "0 or more")
        _require(_is_number(self.alpha) and 0 <= self.alpha <= 1, "alpha", self, "0 to 1")
        _require(_is_whole(self.rank) and self.rank >= 1, "rank", self, "1 or more")
        _require(_is_whole(self.seed) and self.seed >= 0, "seed", self, "a whole number, 0 or more")
        _require(self.prediction in get_args(Prediction), "prediction", self, "base or mean")
        _require(_is_number(self.top) and 0 < self.top <= 1, "top", self, "above 0 to 1")
        _require(self.noise in get_args(Noise), "noise", self, "low_rank or dense")
        try:
            re.compile(self.param_filter)
        except (re.error, TypeError) as error:
            raise InputError(f"param_filter {self.param_filter!r} is not a regular expression: {error}.") from error


def _require(is_right: bool, name: str, settings: VoteSettings, allowed: str) -> None:
    if not is_right:
        raise InputError(f"{name} of an ensemble must be {allowed}; got {getattr(settings, name)!r}.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def matching_layers(model: nn.Module, param_filter: str, top: float = 1.0) -> tuple[str, ...]:
    """Names of the linear layers in which the expression is found, in the upper share `top` of the blocks.

    Raises:
        InputError: none matches; the text names layers that are spelt alike, or says that all of them lie below.
    """
    linear = [name for name, module in model.named_modules() if name and linear_size(module)]
    found = tuple(name for name in linear if re.search(param_filter, name))
    count = max((number + 1 for name in linear if (number := _block_of(name)) is not None), default=0)
    first = count - math.ceil(count * top - 1e-9)
    upper = tuple(name for name in found if (number := _block_of(name)) is None or number >= first)
    if upper:
        return upper
    if found:
        raise InputError(
            f"param_filter {param_filter!r} matches only in blocks below {first} of {count}, where voters with"
            f" top={top:g} do not differ. Set top=1 to let them differ everywhere."
        )
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
    near = near_misses(param_filter, kinds) or kinds[:8]
    raise InputError(f"param_filter {param_filter!r} is found in no linear layer's name. There are: {', '.join(near)}.")


def _block_of(layer: str) -> int | None:
    """The number of the block that a layer is in; None outside of them."""
    match = BLOCK_NUMBER.search(layer)
    return int(match[1]) if match else None


def near_misses(param_filter: str, names: Iterable[str]) -> list[str]:
    """The names that are spelt most like a word of the expression."""
    words = [word for word in re.split(r"[^0-9A-Za-z_]+", param_filter) if word]
    names = list(names)
    return list(dict.fromkeys(name for word in words for name in get_close_matches(word, names, n=3, cutoff=0.5)))
