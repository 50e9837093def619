"""The probe: small networks on hidden states that say whether the answer is wrong. Knows no training and no file.

A state that has read a token comes with the next step, so every token is revised once, one step later; the last one is
when the end token follows it. Source: Kapoor et al. 2024 (arXiv 2406.08391), section 4.1; Azaria & Mitchell 2023
(arXiv 2304.13734). Deviations: several states joined, differences to the prompt's end, several networks averaged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from uqchat.estimators.base import Estimator, stored_risk
from uqchat.estimators.probe_files import FORMAT, RELEASED, Part, ProbeFiles, read_probe, write_probe
from uqchat.estimators.probe_parts import Reader
from uqchat.types import Risk, ScoredToken, Signals, Summary, TokenStep


@dataclass
class ProbeState:
    """One answer so far."""

    reader: Reader
    newest: int | None = None  # index of the answer's newest token, whose state is still to come
    indices: list[int] = field(default_factory=list)
    has_read: bool = False
    raw: float | None = None
    """Of the answer so far, log odds of being wrong; None until somebody asks, which few tokens need."""


class Probe(Estimator):
    """Reads hidden states as they come.

    With a part for tokens, a token's risk is that part's view of the state that has read it. Without, it is what the
    probe says of the answer up to that token, and when the answer is whole all tokens get the answer's.
    """

    name = "probe"
    label = "Probe"
    level: Literal["token", "answer"] = "answer"
    needs = Signals()
    trainable = True
    unit = "log odds of being wrong"
    value_map = "1 / (1 + exp(-log odds))"
    format: ClassVar[str | None] = FORMAT
    files = ((RELEASED,),)

    def __init__(self, parts: ProbeFiles, name: str = "probe") -> None:
        self.parts, self.name, self.origin = parts, name, parts.info
        own = [parts.answer, *([parts.tokens] if parts.tokens else [])]
        self._layers = tuple(sorted({layer for part in own for layer in part.config.layers}))
        self._use_confidence = any(part.config.use_confidence for part in own)
        self.needs = Signals(hidden_layers=self._layers, entropy=self._use_confidence)
        self.level = "token" if parts.tokens else "answer"

    @classmethod
    def from_folder(cls, folder: Path, model: Any, name: str, *, allow_mismatch: bool = False) -> Self:
        """See `Estimator.from_folder`; also a released classifier_model.bin of calibration-tuning."""
        return cls(read_probe(Path(folder), model, allow_mismatch=allow_mismatch), name)

    def save(self, folder: Path) -> None:
        """See `Estimator.save`."""
        write_probe(self.parts, Path(folder))

    def new_state(self) -> ProbeState:
        """An answer without tokens."""
        return ProbeState(Reader(self._layers))

    @torch.inference_mode()
    def score_token(self, step: TokenStep | ScoredToken, state: ProbeState) -> dict[int, Risk]:
        """The newest token's first risk, and that of the one before it, which the model has read now."""
        stored = stored_risk(step, self.name)
        if stored is not None:
            return stored
        read, found = state.newest, {}
        state.reader.read(step, has_read_token=read is not None)
        state.newest, state.raw, state.has_read = None, None, True
        if read is not None:
            found[read] = self._token_risk(state)
        if not (step.is_end or step.is_reasoning):
            state.newest = step.index
            state.indices.append(step.index)
            state.reader.add(step)
            state.raw = None
        found[step.index] = as_risk(self._answer_raw(state)) if step.is_end else self._token_risk(state)
        return found

    def finish(self, state: ProbeState) -> dict[int, Risk]:
        """Without a part for tokens, the answer's risk on all of its tokens: that is what was judged."""
        raw = None if self.parts.tokens is not None else self._answer_raw(state)
        return {} if raw is None else {index: as_risk(raw) for index in state.indices}

    def score_answer(self, tokens: list[ScoredToken], state: ProbeState) -> tuple[Risk, Summary] | None:
        """What the probe says of all that was read. Stored tokens carry it only where there is no part for tokens."""
        raw = self._answer_raw(state)
        if raw is None and self.parts.tokens is None:
            raw = next((token.risks[self.name].raw for token in reversed(tokens) if self.name in token.risks), None)
        return None if raw is None else (as_risk(raw), Summary(raw, raw, raw))

    def _token_risk(self, state: ProbeState) -> Risk:
        if self.parts.tokens is None:
            return as_risk(self._answer_raw(state))
        return as_risk(self._raw(self.parts.tokens, state))

    def _answer_raw(self, state: ProbeState) -> float | None:
        """What the answer's part says of all that was read; None of stored tokens."""
        if state.raw is None and state.has_read:
            with torch.inference_mode():
                state.raw = self._raw(self.parts.answer, state)
        return state.raw

    def _raw(self, part: Part, state: ProbeState) -> float:
        return part.module(state.reader.inputs(part.config)[None]).mean().item()


def as_risk(raw: float) -> Risk:
    """Log odds of being wrong as a risk."""
    return Risk(value=torch.sigmoid(torch.tensor(raw, dtype=torch.float64)).item(), raw=raw)
