"""Vote: voters that share the base model and differ in some of its weights; where they disagree, it does not know.

Voters come from noise, so for any model and without files, or from a folder where they were fine-tuned. Token risk =
mutual information of token and voter / ln n. Source: the vote wrapper of capsa (Themis AI), rebuilt from its guide;
mutual information: Houlsby et al. 2011 (arXiv 1112.5745). Deviation: the answer is written by the base unless
`prediction="mean"` is asked for, and voters never see more than the tokens it chose.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from uqchat.engine.adapters import Adapter
from uqchat.estimators.adapter_names import name_of_changes
from uqchat.estimators.base import Estimator, ModelFacts, stored_risk
from uqchat.estimators.vote_files import FORMAT, VoteFiles, read_vote, write_vote
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_options import UNITS, Reading, aggregated, require_known, risk_of, with_options
from uqchat.estimators.vote_settings import VoteSettings, matching_layers
from uqchat.types import Ensemble, Risk, ScoredToken, Signals, Summary, TokenStep

LAGS = {"auto": "auto", "lockstep": "never", "lagging": "always"}


class EnsembleEstimator(Estimator):
    """Risk of a token: how far the voters disagree on it. A voter reads what the answer's row reads.

    Where voters read behind the answer, a token has no risk at first and gets it when they have come to it.
    """

    level = "token"
    unit, value_map = UNITS["mutual_information"]
    cost = "+ rows"
    needs = Signals()
    ensemble = Ensemble(())
    reading = Reading()

    def take(self, ensemble: Ensemble, reading: Reading) -> None:
        """Whose votes count, and how they are read."""
        self.ensemble, self.reading = ensemble, reading
        self.needs = Signals(ensembles=(ensemble,))
        self.unit, self.value_map = UNITS[reading.score]
        self.lag = "never" if ensemble.prediction == "mean" else LAGS[reading.mode]
        self.cost = cost_of(len(set(ensemble.members)))

    def score_token(self, step: TokenStep | ScoredToken, state: Any) -> dict[int, Risk]:
        """The token's risk, if its voters have come to it; a stored token keeps the one it has."""
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        votes = step.signals.votes.get(self.ensemble) if step.signals else None
        if votes is None:
            return {}
        risk = risk_of(votes, self.reading.score)
        if len(set(self.ensemble.members)) == 1:  # the same voter several times never disagrees; this is rounding
            risk = replace(risk, value=0.0, raw=0.0) if self.reading.score == "mutual_information" else risk
        return {step.index: risk}

    def score_answer(self, tokens: Sequence[ScoredToken], state: Any) -> tuple[Risk, Summary] | None:
        """By the chosen aggregation; None, so by the mean over all tokens, where that is the mean."""
        return aggregated(tokens, self.name, self.reading.aggregate)


def cost_of(count: int) -> str:
    """In a few words, what so many voters cost."""
    return f"+{count} {'row' if count == 1 else 'rows'}"


class InstantEnsemble(EnsembleEstimator):
    """Rows that are made from settings, for any model, the first time they are used."""

    def __init__(self, settings: Any, reading: Reading) -> None:
        self.settings, self.reading = settings, reading
        self._module: Any = None

    def configured(self, name: str, options: Mapping[str, str]) -> Self:
        """See `Estimator.configured`: the fields of the settings and of `Reading`."""
        require_known(options, self.settings, self.reading)
        made = type(self)(with_options(self.settings, options), with_options(self.reading, options))
        made.name = name
        return made

    def for_model(self, facts: ModelFacts) -> Self:
        """The rows of this model. Raises InputError when no layer's name matches, with near misses."""
        if facts.module is not None:
            matching_layers(facts.module, self.settings.param_filter, getattr(self.settings, "top", 1.0))
        self._module = facts.module
        return self


class InstantVote(InstantEnsemble):
    """Voters that are the base with seeded noise on chosen weights."""

    name = "vote_instant"
    label = "Vote (instant)"
    notes = ("Its voters are the model with random noise on some weights: nothing was trained.",)

    def __init__(self, settings: VoteSettings = VoteSettings(), reading: Reading = Reading()) -> None:  # noqa: B008
        super().__init__(settings, reading)
        self.take(Ensemble(self._names(), settings.prediction), reading)

    @cached_property
    def adapters(self) -> Mapping[str, Adapter]:
        """The noise, made when it is first used."""
        voters = noise_voters(self._module, self.settings)
        return {name: Adapter(name, dict(voter)) for name, voter in zip(self._names(), voters, strict=True)}

    def _names(self) -> tuple[str, ...]:
        """Of each voter's adapter; without noise of their own all of them are one."""
        wanted = {key: value for key, value in asdict(self.settings).items() if key not in ("prediction", "n_voters")}
        is_one = not (self.settings.weight_noise and self.settings.alpha)
        kind = "vote " + " ".join(f"{key}={value}" for key, value in wanted.items())
        return tuple(f"{kind} #{0 if is_one else number}" for number in range(self.settings.n_voters))


class Vote(EnsembleEstimator):
    """Voters that were fine-tuned, each on its own part of every batch."""

    name = "vote"
    label = "Vote"
    trainable = True
    format: ClassVar[str | None] = FORMAT
    untrained: ClassVar[str | None] = InstantVote.name

    def __init__(self, files: VoteFiles, name: str = "vote", reading: Reading = Reading()) -> None:  # noqa: B008
        self.parts, self.name = files, name
        names = tuple(name_of_changes("vote", voter) for voter in files.voters)
        self.adapters = {each: Adapter(each, dict(voter)) for each, voter in zip(names, files.voters, strict=True)}
        self.take(Ensemble(names, files.settings.prediction), reading)

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """See `Estimator.from_folder`."""
        return cls(read_vote(Path(folder), model, allow_mismatch=allow_mismatch), name)

    def save(self, folder: Path) -> None:
        """See `Estimator.save`."""
        write_vote(self.parts, Path(folder))

    def configured(self, name: str, options: Mapping[str, str]) -> Self:
        """See `Estimator.configured`: the fields of `Reading`, and `prediction`; the rest was settled by training."""
        rest = {key: text for key, text in options.items() if key != "prediction"}
        require_known(rest, self.reading)
        settings = with_options(self.parts.settings, {key: options[key] for key in options if key not in rest})
        made = copy.copy(self)
        made.name = name
        made.take(Ensemble(self.ensemble.members, settings.prediction), with_options(self.reading, rest))
        return made
