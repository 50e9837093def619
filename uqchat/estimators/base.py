"""The contract that every estimator keeps. Knows no model, no loop and no interface."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.types import Level, Message, Risk, ScoredToken, Signals, Summary, TokenStep

if TYPE_CHECKING:
    from uqchat.calibration import Calibrations
    from uqchat.engine.adapters import Adapter
    from uqchat.estimators.running import Running


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an estimator may ask about the language model that it is to score."""

    num_layers: int
    is_instruct: bool  # it brought a chat template of its own
    context_window: int = 0  # tokens; 0: not known
    module: Any = field(default=None, compare=False)  # the transformers model; None where it runs elsewhere


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What an estimator may ask about the answer that it scores.

    `prompt_ids` are those the model has read, () where they are not at hand; `generation` is None where nobody knows
    how the answer was chosen.
    """

    prompt_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    generation: GenerationConfig | None
    tokenizer: Any


@dataclass(frozen=True, slots=True)
class FollowUp:
    """One more forward over `prompt_ids` when the answer is whole; its reply is the step that predicts the next id."""

    prompt_ids: tuple[int, ...]
    adapter: str | None = None
    """Name of one of the estimator's own `adapters`."""
    signals: Signals = Signals()


class Estimator(Protocol):
    """Turns the engine's steps into risk, higher is riskier.

    A new estimator is one file with a subclass and one line in `uqchat.estimators`. One instance scores several
    answers at once, from several threads; what it must remember between the steps of one is that answer's state. The
    order of calls for an answer: `new_state`, `share`, `begin`, `score_token` for each step, and when it is whole
    `finish`, `follow_ups`, `take_replies` if there were any, `score_answer`.
    """

    name: str
    """Stable snake_case name, used in code, files and the shell; a trained estimator's is what the caller gave."""
    label: str
    """Name shown to people."""
    level: Level
    """What one score covers; a sentence or answer score tints the span it covers."""
    needs: Signals
    """What the engine must capture."""
    trainable: ClassVar[bool] = False
    unit: str
    """Unit of the raw score, for the legend."""
    value_map: str
    """The fixed map from raw to value while uncalibrated, for the legend."""
    format: ClassVar[str | None] = None
    """`format` in the config.json of its artifact folders; None: it has nothing trained."""
    files: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of files that make up a folder, where they are others than config.json + model.safetensors."""
    calibrations: Calibrations | None = None
    """Maps raw scores to probabilities of error; the scorer applies them."""
    reads_on: bool = False
    """Whether it has follow-ups, which cost more than the answer's own steps do."""
    adapters: Mapping[str, Adapter] = MappingProxyType({})
    """Changes of the model's weights that its follow-ups or voters use, by a name that no other artifact has."""
    cost: str = ""
    """What it costs beside the answer's own steps, in a few words; such a one runs only for who asks for it."""
    lag: Literal["never", "auto", "always"] = "never"
    """Whether its voters may read behind the answer, in chunks; it is handed those tokens' steps a second time."""
    untrained: ClassVar[str | None] = None
    """Of a trained kind: the name of what stands in where nothing was trained for the model."""

    source: Hashable = None
    """What it was opened from: of two that say the same, either's scores are the other's. None: not known."""
    notes: tuple[str, ...] = ()
    """What a reader should know of it, a sentence each."""
    card: str | None = None
    """Markdown: what it is, where it comes from, how well it does; None where only a file may say so."""

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """The trained estimator of a folder.

        Args:
            model: what `uqchat.load` returns. name: the estimator's from now on.
            allow_mismatch: use it though it was trained for another model, where the dimensions fit.

        Raises:
            UqchatError: a file is missing or damaged, or the estimator was trained for another model.
        """
        raise InputError(f"{cls.label} is not trained, so there is nothing to load for it from {folder}.")

    def save(self, folder: Path) -> None:
        """Write the files that `from_folder` reads, and a card. Raises UqchatError for one that is not trained."""
        raise InputError(f"{self.label} is not trained, so there is nothing to save.")

    def configured(self, name: str, options: Mapping[str, str]) -> Self:
        """A copy under this name with the options that were written behind it. Raises InputError on one it lacks."""
        raise InputError(f"{self.label} has no options; got {', '.join(options)[:80]!r}.")

    def for_model(self, facts: ModelFacts) -> Self:
        """The estimator as it works on this model; most do not depend on it."""
        return self

    def new_state(self) -> Any:
        """Whatever one answer needs between its steps; None if each token stands alone."""
        return None

    def share(self, running: Mapping[Hashable, Running], state: Any) -> None:
        """What runs beside it on this answer, by source: one that is made of others need not run those once more."""

    def begin(self, context: AnswerContext, state: Any) -> None:
        """What is asked, before the first step; not told for stored tokens."""

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """Risk by token index; an index already given before is a revision."""
        ...

    def finish(self, state: Any) -> dict[int, Risk]:
        """The answer is whole, or was stopped: last revisions by token index."""
        return {}

    def follow_ups(self, context: AnswerContext, tokens: Sequence[ScoredToken], state: Any) -> list[FollowUp]:
        """Further forwards that it wants now that the answer is whole; not asked of an answer that was stopped."""
        return []

    def take_replies(self, replies: list[TokenStep], state: Any) -> dict[int, Risk]:
        """One step for each follow-up, in order; gives last revisions by token index."""
        return {}

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """Answer-level risk and summary of raw scores, or None for the mean over the answer's tokens."""
        return None


def stored_risk(step: TokenStep | ScoredToken, name: str) -> dict[int, Risk] | None:
    """What an estimator that needs the model's signals gives for a stored token: the risk that it has, if any.

    None for a step of the model, which is to be scored.
    """
    if not isinstance(step, ScoredToken):
        return None
    return {step.index: step.risks[name]} if name in step.risks else {}
