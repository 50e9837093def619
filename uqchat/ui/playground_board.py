"""What each tab looks at in the playground, by its session. Knows no component.

Uploaded records are kept in memory and belong to that tab alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

from uqchat.errors import InputError
from uqchat.evaluation_job import EvaluationJob
from uqchat.policy import Costs
from uqchat.records import Records
from uqchat.ui.playground_data import MAX_CURVES, Curve, Wish, make_curve, open_records, opening

PAGE = 15  # questions on each side of the threshold, and how many more a press brings
_MAX_BOARDS = 64


@dataclass
class Board:
    """What one tab looks at."""

    uploads: dict[str, Records] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    wish: Wish = Wish()
    chosen: str = ""
    rank: int = 0
    costs: Costs = Costs()
    limit: int = PAGE
    waiting: str = ""
    """A file or `hub:` source whose columns are not named yet."""
    job: EvaluationJob | None = None
    """The model answers or scores its rows."""
    scratch: TemporaryDirectory | None = None
    """Holds what the job wrote."""
    folder: TemporaryDirectory | None = None
    """Holds what was exported last."""

    def records(self, name: str, folder: Path) -> Records:
        """The run of that name. Raises InputError when there is none."""
        known = {curve.run.name: curve.run for curve in self.curves} | self.uploads
        return known.get(name) or open_records(name, folder)

    def take(self, runs: Sequence[Records], estimators: Sequence[str]) -> None:
        """Draw these estimators of these runs."""
        found = [make_curve(run, name) for run in runs for name in run.estimators if name in estimators]
        if runs and not found:  # these runs have others
            found = [make_curve(run, name) for run in runs for name in first_of(run.estimators)]
        self.curves = [curve for curve in found if len(curve.report.risk)][:MAX_CURVES]
        if self.chosen not in [curve.key for curve in self.curves]:
            self.chosen = self.curves[0].key if self.curves else ""

    def open(self, records: Records) -> None:
        """Draw one run, with a level that can be certified."""
        self.take([records], first_of(records.estimators))
        if self.curves:
            curve, self.wish = opening(self.curves)
            self.chosen = curve.key

    def curve(self, key: object) -> Curve:
        """The curve of that name. Raises InputError when it is not drawn any more."""
        found = next((curve for curve in self.curves if curve.key == key), None)
        if found is None:
            raise InputError("These curves are no longer on the server; choose the records again.")
        return found

    def place(self, data: Mapping[str, object]) -> Curve:
        """Where the threshold stands, and what things cost, as the page tells. Raises InputError on anything else."""
        curve, rank = self.curve(data.get("curve")), data.get("rank")
        if not isinstance(rank, int) or not 0 <= rank <= len(curve.report.risk):
            raise InputError("The page sent no place on the curve; reload it.")
        try:
            self.costs = Costs.model_validate(data.get("costs") or {})
        except ValueError as error:
            raise InputError("Costs must be numbers, 0 or more.") from error
        self.chosen, self.rank = curve.key, rank
        return curve


class Boards:
    """The boards of the tabs seen last."""

    def __init__(self) -> None:
        self._boards: OrderedDict[str, Board] = OrderedDict()
        self._lock = Lock()

    def of(self, session: str | None) -> Board:
        """The board of a tab; a new one is empty."""
        with self._lock:
            board = self._boards.setdefault(session or "", Board())
            self._boards.move_to_end(session or "")
            while len(self._boards) > _MAX_BOARDS:
                _, old = self._boards.popitem(last=False)
                if old.job is not None:
                    old.job.cancel()
            return board


def first_of(estimators: Sequence[str]) -> tuple[str, ...]:
    """Those to draw at first: a handful, the trained ones before the others."""
    order = ("uq_head", "probe", "combination", "query", "entropy", "max_prob")
    known = sorted(estimators, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(known[:4])
