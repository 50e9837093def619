"""The single thread that owns an engine: requests in, events out, stop flags. Knows no estimator and no interface."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from uqchat.engine.backend import FinishEvent, Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.engine.failure import explain
from uqchat.engine.lineup import MAX_ROWS
from uqchat.errors import BusyError, ModelError, UqchatError
from uqchat.types import Timings, TokenStep

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request on its way through the worker; its consumer reads `events`."""

    request: Request
    stop: threading.Event
    events: queue.SimpleQueue[TokenStep | FinishEvent | int] = field(default_factory=queue.SimpleQueue)
    ahead: int = -1  # requests before this one, as last told
    is_dropped: bool = False  # nobody reads on; apart from `stop`, which may be shared by several requests

    @property
    def is_stopped(self) -> bool:
        """Whether it should end now."""
        return self.is_dropped or self.stop.is_set()


class Worker:
    """Batches what several threads ask for; each of them reads its own stream.

    Args:
        engine: owned by the worker's thread from now on.
        max_waiting: requests that may wait while all rows are taken.
    """

    def __init__(self, engine: Engine, max_waiting: int = 1024) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []
        self._active: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._open: set[Job] = set()
        self._is_closed = False
        self._num_threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="uqchat-model", daemon=True)
        self._thread.start()
        # A script may just end: the thread must not be inside torch while the interpreter goes away.
        atexit.register(_close_if_alive, weakref.ref(self))

    @property
    def num_open(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    @property
    def num_rows(self) -> int:
        """Rows of the requests that wait or run, those of voters included."""
        with self._lock:
            return sum(1 + len(job.request.companions) for job in self._open)

    def submit(self, request: Request, stop: threading.Event | None = None) -> Job:
        """Hand a request in; read it with `events`, or give it up with `cancel`.

        Raises:
            BusyError: too many requests wait. ModelError: the model was unloaded.
        """
        with self._lock:
            if self._is_closed:
                raise ModelError("This model has been unloaded; load one first.")
            if len(self._open) >= MAX_ROWS + self.max_waiting:
                raise BusyError(f"{len(self._open)} requests are under way or waiting already. Try again in a moment.")
            job = Job(request, stop or threading.Event())
            self._open.add(job)
            self._inbox.put(job)
        return job

    def events(self, job: Job, on_queue: Callable[[int], None] | None = None) -> Iterator[TokenStep | FinishEvent]:
        """Steps of one request, then its `FinishEvent`. Closing the iterator stops the request.

        Raises:
            ModelError: the model failed or was unloaded.
        """
        try:
            while True:
                event = job.events.get()
                if isinstance(event, int):
                    if on_queue:
                        on_queue(event)
                    continue
                if isinstance(event, FinishEvent) and event.error is not None:
                    raise event.error
                yield event
                if isinstance(event, FinishEvent):
                    return
        finally:
            self.cancel(job)

    def arrived(self, job: Job) -> Iterator[TokenStep | FinishEvent]:
        """As `events`, but only what has come by now; the request goes on. Raises ModelError as `events` does."""
        while not job.events.empty():
            event = job.events.get()
            if isinstance(event, int):
                continue
            if isinstance(event, FinishEvent):
                self.cancel(job)
                if event.error is not None:
                    raise event.error
            yield event

    def cancel(self, job: Job) -> None:
        """Stop a request within one step, if it still runs."""
        job.is_dropped = True
        with self._lock:
            self._open.discard(job)

    def stream(
        self, request: Request, stop: threading.Event | None = None, on_queue: Callable[[int], None] | None = None
    ) -> Iterator[TokenStep | FinishEvent]:
        """`submit` and `events` in one, starting at the first `next`."""
        yield from self.events(self.submit(request, stop), on_queue)

    def close(self) -> None:
        """End all requests and the thread."""
        with self._lock:  # no request comes in behind the end
            self._is_closed = True
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    # ---- the thread

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # a thread begins with what another may just have set for itself
        while self._receive():
            try:
                self._admit()
                self._stop_cancelled()
                for event in self.engine.step():
                    self._deliver(event)
            except Exception as error:  # noqa: BLE001  one bad step must not take the app down
                self._fail(error)
        self._end_all(ModelError("The model was unloaded before the answer was complete."))

    def _receive(self) -> bool:
        """Take in new jobs, waiting for one when there is nothing to do; False ends the thread."""
        while True:
            is_idle = not (self._waiting or self._active)
            try:
                job = self._inbox.get(block=is_idle)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._waiting.append(job)

    def _admit(self) -> None:
        while self._waiting and len(self._active) < MAX_ROWS:
            job = self._waiting.pop(0)
            if job.is_stopped:
                job.events.put(FinishEvent(-1, "cancelled", Timings()))
                continue
            try:
                self._active[self.engine.add(job.request)] = job
                job.events.put(0)
            except UqchatError as error:  # too large, or no such adapter
                job.events.put(FinishEvent(-1, "error", Timings(), error))
        for ahead, job in enumerate(self._waiting, start=1):
            if job.ahead != ahead:
                job.ahead = ahead
                job.events.put(ahead)

    def _stop_cancelled(self) -> None:
        for key in [key for key, job in self._active.items() if job.is_stopped]:
            for event in self.engine.remove(key):
                self._deliver(event)
        for job in [job for job in self._waiting if job.is_stopped]:
            self._waiting.remove(job)
            job.events.put(FinishEvent(-1, "cancelled", Timings()))

    def _deliver(self, event: StepEvent | FinishEvent) -> None:
        if isinstance(event, StepEvent):
            self._active[event.key].events.put(event.step)
        else:
            self._active.pop(event.key).events.put(event)

    def _fail(self, error: Exception) -> None:
        """What the engine cannot lay on single rows: all of them end."""
        log.exception("the model failed between two steps")
        self.engine.reset()
        error = explain(error)
        for job in self._active.values():
            job.events.put(FinishEvent(-1, "error", Timings(), error))
        self._active.clear()

    def _end_all(self, error: Exception) -> None:
        self.engine.reset()
        jobs = [*self._active.values(), *self._waiting]
        while not self._inbox.empty():
            jobs += [job for job in [self._inbox.get()] if job is not None]
        for job in jobs:
            job.events.put(FinishEvent(-1, "error", Timings(), error))
        self._active.clear()
        self._waiting.clear()


def _close_if_alive(reference: weakref.ref[Worker]) -> None:
    worker = reference()
    if worker is not None:
        worker.close()
