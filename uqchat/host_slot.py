"""The place of the model that everybody shares: which answers use it, and the one job that may put another there.

A job waits for running answers and refuses new ones with the reason; the old model stays when the new one fails or the
job is cancelled. Knows neither how a model is loaded nor what is asked of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uqchat.errors import BusyError, ModelCancelledError, UqchatError
from uqchat.host_status import EMPTY, HostStatus, State, details_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uqchat.host_estimators import Offer
    from uqchat.language_model import LanguageModel
    from uqchat.loading import LoadProgress

    Load = Callable[[threading.Event], tuple[LanguageModel, tuple[Offer, ...]]]


class ModelSlot:
    """Safe to use from many threads.

    Args:
        max_queue: answers that may wait for the model.
    """

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self.lock = threading.Condition()  # guards everything below
        self.status = EMPTY
        self.model: LanguageModel | None = None
        self.num_answers = 0
        self._job: threading.Thread | None = None
        self._cancel = threading.Event()

    # ---- answers

    @contextmanager
    def admitted(self) -> Iterator[LanguageModel]:
        """Count one answer in and out; the model stays while any is counted. Raises BusyError as `require`."""
        with self.lock:
            model = self.require()
            self.num_answers += 1
        try:
            yield model
        finally:
            with self.lock:
                self.num_answers -= 1
                self.lock.notify_all()

    def require(self) -> LanguageModel:
        """The model, for one more answer.

        Raises:
            BusyError: no model is ready (the text says why), or too many answers wait for it.
        """
        with self.lock:
            model = self.ready("ask again")
            if self.num_answers > self._max_queue:
                waiting = self.num_answers - 1
                count = "1 request is" if waiting == 1 else f"{waiting} requests are"
                raise BusyError(f"{count} waiting for the model already. Please try again in a moment.")
            return model

    def ready(self, what: str) -> LanguageModel:
        """The model while no job is under way. Raises BusyError, which says what to do when one is ready."""
        with self.lock:
            if self._job is not None or self.model is None:
                raise BusyError(f"{self.status.message} Please {what} when a model is ready.")
            return self.model

    # ---- jobs

    def begin(self, state: State, name: str | None, load: Load | None) -> None:
        """Begin to put another model here and return at once.

        Args:
            name: of the model; None with `load` leaves the place empty.
            load: makes it, and the list of what it can be asked to estimate; given the flag that cancels it.

        Raises:
            BusyError: another job is under way.
        """
        with self.lock:
            if self._job is not None:
                raise BusyError(f"{self.status.message} Please wait, or cancel it first.")
            self._cancel = threading.Event()
            doing = f"The model is being changed to {name}." if name else "The model is being unloaded."
            self._set(state, f"{name} is being loaded." if state == "loading" else doing)
            # A token lives in this thread's arguments only, so it goes when the job ends.
            self._job = threading.Thread(target=self._run, args=(name, load), name="model-loader", daemon=True)
            self._job.start()

    def cancel(self) -> None:
        """Stop the job that is under way; without one nothing happens."""
        with self.lock:
            self._cancel.set()
            if self._job is not None:  # a step that is under way ends first, and that can take a while
                self._set(self.status.state, "Cancelling; this takes effect after the current step.")
            self.lock.notify_all()

    def close(self) -> None:
        """Stop the job under way and free the model."""
        self.cancel()
        job = self._job
        if job is not None and job is not threading.current_thread():
            job.join()
        with self.lock:
            model, self.model = self.model, None
            self.status = EMPTY
        if model is not None:
            model.close()

    def progress(self, progress: LoadProgress) -> None:
        """How far the job is."""
        with self.lock:
            self._set(self.status.state, f"{progress.message}.", progress.done, progress.total)

    def note(self, **changes: Any) -> None:
        """Change what the status says of estimators."""
        with self.lock:
            self.status = replace(self.status, **changes)

    def _run(self, name: str | None, load: Load | None) -> None:
        outcome: tuple[str, str | None] = ("", None)
        try:
            self._wait_for_answers(name)
            self._replace(*(load(self._cancel) if load else (None, ())))
        except ModelCancelledError:
            outcome = (f"Loading {name} was cancelled." if name else "Unloading was cancelled.", None)
        except UqchatError as error:
            outcome = (f"{name} could not be loaded.", str(error))
        except BaseException as error:
            outcome = (f"{name} could not be loaded.", f"An unexpected error: {type(error).__name__}.")
            raise
        finally:
            self._finish(*outcome)

    def _wait_for_answers(self, name: str | None) -> None:
        goal = f"before {name} is loaded" if name else "before the model is unloaded"
        with self.lock:
            while self.num_answers and not self._cancel.is_set():
                count = "1 answer" if self.num_answers == 1 else f"{self.num_answers} answers"
                self._set(self.status.state, f"Waiting for {count} to finish {goal}.")
                self.lock.wait()
        if self._cancel.is_set():
            raise ModelCancelledError("Cancelled.")

    def _replace(self, fresh: LanguageModel | None, offers: tuple[Offer, ...]) -> None:
        with self.lock:
            old, self.model = self.model, fresh
            self.status = replace(self.status, offers=offers)
        if old is not None:
            old.close()

    def _finish(self, message: str, error: str | None) -> None:
        with self.lock:
            self._job = None
            model = self.model
            if model is not None:
                text = f"{message} {model.name} is ready." if message else f"{model.name} is ready."
                self._set("ready", text, error=error, details=details_of(model))
            else:
                self._set("failed" if error else "empty", message or "No model is loaded.", error=error)
            self.lock.notify_all()

    def _set(
        self,
        state: State,
        message: str,
        done: int | None = None,
        total: int | None = None,
        error: str | None = None,
        details: str = "",
    ) -> None:
        now, name = self.status, self.model.name if self.model else None
        self.status = HostStatus(
            state, name, message, done, total, error, details, now.offers, now.adding, now.adding_error
        )
