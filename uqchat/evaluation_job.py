"""An evaluation in the background: begun, watched, cancelled. Knows no page and no shell."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from uqchat.errors import UqchatError
from uqchat.evaluation import Model, Plan, Progress, evaluate
from uqchat.evaluation_data import Question
from uqchat.records import Records

BATCH = 8  # questions between two looks at the cancel flag


class EvaluationJob:
    """Runs `evaluate` in a thread of its own, from the moment it is made.

    What was done before a cancel or a failure lies in `<path>.part`; the same job, made anew, goes on from there.

    Args:
        as `evaluate`.
    """

    def __init__(self, model: Model, questions: Sequence[Question], plan: Plan, path: Path) -> None:
        self.progress = Progress(0, len(questions), None)
        self.records: Records | None = None
        """The result, once it is there."""
        self.error = ""
        """Why there is none, as a sentence for the user."""
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(model, questions, plan), name="evaluation", daemon=True)
        self._thread.start()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def cancel(self) -> None:
        """Stop after the batch that is under way."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, model: Model, questions: Sequence[Question], plan: Plan) -> None:
        self.error = "An unexpected error; the log of the app has it."
        try:
            options = {"on_progress": self._tell, "stop": self._stop, "batch": BATCH}
            self.records, self.error = evaluate(model, questions, plan, self.path, **options), ""
        except UqchatError as error:  # a cancel too
            self.error = str(error)

    def _tell(self, progress: Progress) -> None:
        self.progress = progress
