"""The worker's place for a backend that batches by itself: every consumer drains its own stream, no thread of ours.

Knows no estimator and no interface.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

from uqchat.engine.backend import Backend, FinishEvent, Request
from uqchat.engine.worker import Job
from uqchat.errors import BusyError, ModelError
from uqchat.types import Timings, TokenStep


class DirectReader:
    """Submits and reads requests as `Worker` does.

    Args:
        backend: must take `stream` calls from several threads.
        max_open: requests that may be under way.
    """

    def __init__(self, backend: Backend, max_open: int = 1024) -> None:
        self.backend = backend
        self.max_open = max_open
        self._open: set[Job] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def num_open(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    @property
    def num_rows(self) -> int:
        """As `Worker.num_rows`; there are no voters here."""
        return len(self._open)

    def submit(self, request: Request, stop: threading.Event | None = None) -> Job:
        """As `Worker.submit`."""
        with self._lock:
            if self._is_closed:
                raise ModelError("This model has been unloaded; load one first.")
            if len(self._open) >= self.max_open:
                raise BusyError(f"{len(self._open)} requests are under way already. Try again in a moment.")
            job = Job(request, stop or threading.Event())
            self._open.add(job)
            return job

    def events(self, job: Job, on_queue: Callable[[int], None] | None = None) -> Iterator[TokenStep | FinishEvent]:
        """As `Worker.events`; what the backend raises is raised."""
        try:
            if on_queue:
                on_queue(0)
            with closing(self.backend.stream([job.request])) as events:
                for event in events:
                    if self._is_closed:
                        raise ModelError("The model was unloaded before the answer was complete.")
                    if job.is_stopped:
                        yield FinishEvent(-1, "cancelled", Timings())
                        return
                    if isinstance(event, FinishEvent) and event.error is not None:
                        raise event.error
                    yield event if isinstance(event, FinishEvent) else event.step
        finally:
            self.cancel(job)

    def cancel(self, job: Job) -> None:
        """The stream ends with its next event."""
        job.is_dropped = True
        with self._lock:
            self._open.discard(job)

    def close(self) -> None:
        """All streams end with their next event."""
        with self._lock:
            self._is_closed = True
