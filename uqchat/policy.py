"""A threshold, what to do above it, and the files that keep both. Knows no answer, no model and no page.

A policy says: trust an answer whose risk by `estimator` is at most `threshold`. What it promises, and on which answers
that was established, stays with it. What it makes of an answer is `policy_judge`'s.
"""

from __future__ import annotations

import os
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from uqchat.errors import InputError

Action = Literal["mark", "decline", "retry", "stop_early", "trim", "hand_over"]
ACTIONS: dict[Action, str] = {
    "mark": "Mark the answer",
    "decline": "Decline, and offer to show it",
    "retry": "Try again until below the threshold",
    "stop_early": "Stop as soon as it looks wrong",
    "trim": "Leave out risky sentences",
    "hand_over": "Ask a second model",
}
"""What may be done with an answer above the threshold, and what to call it."""
Share = Annotated[float, Field(ge=0, le=1)]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Guarantee(_Record):
    """Of the answered questions at most `max_error` are wrong, with confidence 1 - `delta`."""

    max_error: Share
    delta: Annotated[float, Field(gt=0, lt=1)]


class Costs(_Record):
    """What one of each is worth, in one unit of the user's choice."""

    wrong: Annotated[float, Field(ge=0)] = 1.0
    refusal: Annotated[float, Field(ge=0)] = 0.25
    withheld: Annotated[float, Field(ge=0)] = 0.0
    """A right answer that was declined, on top of the refusal."""
    hand_over: Annotated[float, Field(ge=0)] | None = None


class Origin(_Record):
    """The answers by which the threshold was chosen."""

    records: str = ""
    """Name of the records file."""
    data_sets: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    num_answers: int = Field(0, ge=0)
    model: str = ""
    risks: tuple[Share, ...] = Field((), max_length=1001)
    """Evenly spaced quantiles of their risks, by which drift is noticed."""
    scope: str | None = None
    """Scope of the estimator's calibration; None: its values were not calibrated, and where they hold is not known."""


class Policy(_Record):
    """One version of a policy."""

    format: Literal["uqchat-policy"] = "uqchat-policy"
    name: str = Field(pattern=f"^{_NAME.pattern}$")
    version: int = Field(1, ge=1)
    estimator: str = Field(min_length=1)
    threshold: Share
    """An answer passes if its risk is at most this."""
    raw_threshold: float | None = Field(None, allow_inf_nan=False)
    """The same in the score's own unit, by which a part of an answer is judged: a calibrated value belongs to a whole
    answer, and tokens have another calibration. None: parts are judged by their tokens' risks."""
    action: Action = "mark"
    guarantee: Guarantee | None = None
    """None: the threshold was chosen by hand and promises nothing."""
    calibrated_on: Origin = Origin()
    coverage: Share | None = None
    """Share of questions answered, on answers that did not choose the threshold."""
    accuracy: Share | None = None
    """Share of right ones among those."""
    costs: Costs = Costs()
    tries: int = Field(4, ge=2, le=32)
    """Answers at most, for "retry"."""
    temperature: float = Field(0.8, gt=0, le=2)
    """Of the later tries."""
    second_model: str = ""
    """Who is asked by "hand_over"."""
    created_at: str = ""

    @model_validator(mode="after")
    def _has_second(self) -> Policy:
        if self.action == "hand_over" and not self.second_model:
            raise ValueError("hand_over needs second_model: a Hub id, a folder or a GGUF file")
        return self

    @property
    def ref(self) -> str:
        """`name@version`, which names this version for ever."""
        return f"{self.name}@{self.version}"

    @property
    def basis(self) -> str:
        """One sentence: what is promised, and by which answers."""
        origin = self.calibrated_on
        sets = ", ".join(origin.data_sets) or "no named data set"
        where = f"{origin.num_answers:,} answers of {sets}" if origin.num_answers else sets
        unknown = "" if origin.scope else " The score is not calibrated, so it judges questions of every kind."
        if self.guarantee is None:
            return f"The threshold was chosen by hand on {where}; it promises nothing.{unknown}"
        return (
            f"At most {self.guarantee.max_error:.0%} of the answered questions are wrong, with confidence "
            f"{1 - self.guarantee.delta:.0%}, for questions like the {where}.{unknown}"
        )


def parse_policy(text: str | bytes, source: str) -> Policy:
    """A policy from JSON. Raises InputError that names the field which is not allowed."""
    try:
        return Policy.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{source} is no usable policy: {field}: {first['msg']}.") from error


class PolicyStore:
    """Policies as JSON files, one folder per name and one file per version; a version never changes.

    Args:
        folder: where they lie; made when the first is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, policy: Policy) -> Policy:
        """Keeps it as the next version of its name. Raises InputError when the folder cannot be written."""
        while True:
            number = max(self._versions(policy.name), default=0) + 1
            now = datetime.now(UTC).isoformat(timespec="seconds")
            kept = policy.model_copy(update={"version": number, "created_at": now})
            path = self.folder / policy.name / f"{number}.json"
            fresh = path.with_name(f".{uuid.uuid4().hex}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_text(kept.model_dump_json(indent=1) + "\n", encoding="utf-8")
                os.link(fresh, path)  # whoever comes first has the number
                return kept
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"The policy cannot be kept in {self.folder}: {error.strerror}.") from error
            finally:
                fresh.unlink(missing_ok=True)

    def load(self, ref: str) -> Policy:
        """`name` (its newest version) or `name@version`. Raises InputError when there is none."""
        name, _, number = ref.partition("@")
        versions = self._versions(name)
        wanted = int(number) if number.isdigit() else max(versions, default=0) if not number else 0
        if wanted not in versions:
            known = ", ".join(policy.ref for policy in self.newest()) or "none yet"
            raise InputError(f"There is no policy {ref!r}. Known: {known}.")
        return self._read(name, wanted)

    def newest(self) -> list[Policy]:
        """The newest version of every name, by name; files that cannot be read are left out."""
        if not self.folder.is_dir():
            return []
        found = []
        for folder in sorted(self.folder.iterdir()):
            versions = self._versions(folder.name)
            try:
                found += [self._read(folder.name, max(versions))] if versions else []
            except InputError:
                continue
        return found

    def _versions(self, name: str) -> list[int]:
        if not _NAME.fullmatch(name) or not (self.folder / name).is_dir():
            return []
        return [int(path.stem) for path in (self.folder / name).glob("*.json") if path.stem.isdigit()]

    def _read(self, name: str, version: int) -> Policy:
        path = self.folder / name / f"{version}.json"
        try:
            return parse_policy(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
