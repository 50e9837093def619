"""Monte-Carlo dropout: rows of the model with features left out at random; where they disagree, it does not know.

A row's mask is fixed, so that it is one function through the whole answer, as a sample of the posterior is in Gal and
Ghahramani 2016 (arXiv 1506.02142), section 4; same risk measures as `vote`. The rows mask what goes into the layers
that close attention, for any model and without training, or what a LoRA reads that was trained with that dropout.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from uqchat.engine.adapters import Adapter
from uqchat.estimators.adapter_names import name_of_changes
from uqchat.estimators.dropout_files import (
    FORMAT,
    DropoutFiles,
    DropoutSettings,
    masked_inputs,
    masked_lora,
    read_dropout,
    write_dropout,
)
from uqchat.estimators.vote import EnsembleEstimator, InstantEnsemble
from uqchat.estimators.vote_options import Reading, require_known, with_options
from uqchat.types import Ensemble


class InstantDropout(InstantEnsemble):
    """Rows in which features of attention's outputs are left out."""

    name = "dropout_instant"
    label = "Dropout (instant)"
    notes = ("Its rows leave features of attention's outputs out at random: nothing was trained.",)

    def __init__(self, settings: DropoutSettings = DropoutSettings(), reading: Reading = Reading()) -> None:  # noqa: B008
        super().__init__(settings, reading)
        self.take(Ensemble(self._names()), reading)

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        """The masks, made when they are first used."""
        rows = masked_inputs(self._module, self.settings)
        return {name: Adapter(name, dict(row)) for name, row in zip(self._names(), rows, strict=True)}

    def _names(self) -> tuple[str, ...]:
        wanted = {key: value for key, value in asdict(self.settings).items() if key != "n_samples"}
        kind = "dropout " + " ".join(f"{key}={value}" for key, value in wanted.items())
        return tuple(f"{kind} #{number if self.settings.rate else 0}" for number in range(self.settings.n_samples))


class Dropout(EnsembleEstimator):
    """Rows of a LoRA that was trained with dropout, each with a mask of what it reads."""

    name = "dropout"
    label = "Dropout"
    trainable = True
    format: ClassVar[str | None] = FORMAT
    untrained: ClassVar[str | None] = InstantDropout.name

    def __init__(self, files: DropoutFiles, name: str = "dropout", reading: Reading = Reading()) -> None:  # noqa: B008
        self.parts, self.name = files, name
        rows = masked_lora(files.adapter, files.settings)
        names = tuple(name_of_changes("dropout", row) for row in rows)
        self.adapters = {each: Adapter(each, dict(row)) for each, row in zip(names, rows, strict=True)}
        self.take(Ensemble(names), reading)

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """See `Estimator.from_folder`."""
        return cls(read_dropout(Path(folder), model, allow_mismatch=allow_mismatch), name)

    def save(self, folder: Path) -> None:
        """See `Estimator.save`."""
        write_dropout(self.parts, Path(folder))

    def configured(self, name: str, options: Mapping[str, str]) -> Self:
        """See `Estimator.configured`: the fields of `Reading`; the rest was settled by training."""
        require_known(options, self.reading)
        made = copy.copy(self)
        made.name = name
        made.take(self.ensemble, with_options(self.reading, options))
        return made
