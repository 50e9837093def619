"""The model that everybody on the page shares: loaded in the background, switched, unloaded, asked. Knows no interface.

Only one job (load, switch, unload) is under way at a time. It waits for running answers, refuses new ones with the
reason, and leaves the old model in place when the new one fails or the job is cancelled. Trained estimators are added
to the list in the background too, while answers go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from uqchat.config import AppConfig, GenerationConfig
from uqchat.errors import BusyError, ModelCancelledError, ModelError, UqchatError
from uqchat.host_estimators import Offer, offers_of
from uqchat.loading import LoadProgress
from uqchat.marks import MarkedAnswer, refit
from uqchat.quick_imports import quick_imports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uqchat.language_model import LanguageModel
    from uqchat.types import Answer, Message, ScoredToken

State = Literal["loading", "ready", "switching", "failed", "empty"]


@dataclass(frozen=True, slots=True)
class HostStatus:
    """`message` is one sentence for everybody; `done` and `total` are bytes; `error` is why the last job failed.

    `adding` names the estimator that is being opened, `adding_error` says why the last one could not be.
    """

    state: State
    model: str | None
    message: str
    done: int | None = None
    total: int | None = None
    error: str | None = None
    details: str = ""
    offers: tuple[Offer, ...] = ()
    adding: str | None = None
    adding_error: str | None = None

    @property
    def estimators(self) -> tuple[str, ...]:
        """Names of the estimators that every answer is scored by: all that fit the model and cost next to nothing."""
        return tuple(offer.name for offer in self.offers if not offer.refusal and not offer.is_costly)

    def estimators_with(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Those, and of the costly ones those that are wanted."""
        wanted = set(wanted)
        usable = [offer for offer in self.offers if not offer.refusal]
        return tuple(offer.name for offer in usable if not offer.is_costly or offer.name in wanted)


def load_language_model(name: str, **options: Any) -> LanguageModel:
    """The real thing: `load_model` with the same arguments, made into a `LanguageModel`."""
    with quick_imports():
        from uqchat.language_model import from_loaded
        from uqchat.models import load_model

        return from_loaded(load_model(name, **options))


class ModelHost:
    """Owns the language model and hands out its answers; safe to use from many threads.

    Args:
        config: which model to begin with, where it runs, who may switch.
        load: makes a language model; takes what `load_model` takes.
    """

    def __init__(self, config: AppConfig, load: Callable[..., LanguageModel] = load_language_model) -> None:
        self._config = config
        self._load = load
        self._changed = threading.Condition()  # guards everything below
        self._model: LanguageModel | None = None
        self._admitted_count = 0
        self._job: threading.Thread | None = None
        self._cancel = threading.Event()
        self._added: list[str] = []  # estimators named on the page, tried with every model
        self._status = HostStatus("empty", None, "No model is loaded.")

    def start(self) -> None:
        """Begin to load the configured model and return at once. Raises BusyError while another job runs."""
        options = {"dtype": self._config.dtype, "quantization": self._config.quantization}
        self._begin("loading", self._config.model, options)

    def switch(
        self, name: str, *, token: str | None = None, dtype: str | None = None, quantization: str | None = None
    ) -> None:
        """Begin to load another model and return at once.

        Raises:
            ModelError: switching is turned off, or no name.
            BusyError: another job is under way.
        """
        self._require_switching()
        if not name.strip():
            raise ModelError("No model was named; give `embedded`, a Hub id, a folder or a GGUF file.")
        self._begin("switching", name.strip(), {"token": token, "dtype": dtype, "quantization": quantization})

    def unload(self) -> None:
        """Begin to free the model once running answers have ended. Raises as `switch`."""
        self._require_switching()
        self._begin("switching", None, {})

    def add_estimator(self, name: str) -> None:
        """Begin to open a trained estimator, by folder or Hub id, and return at once; `status` tells how it ended.

        Raises:
            ModelError: switching is turned off, or no name.
            BusyError: no model is ready, or another one is being opened.
        """
        self._require_switching("Adding an estimator")
        name = name.strip()
        if not name:
            raise ModelError("No estimator was named; give a folder or a Hub id such as organisation/name.")
        with self._changed:
            model = self._model
            if self._job is not None or model is None:
                raise BusyError(f"{self._status.message} Please try again when a model is ready.")
            if self._status.adding:
                raise BusyError(f"{self._status.adding} is being opened. Please wait for it.")
            self._status = replace(self._status, adding=name, adding_error=None)
        threading.Thread(target=self._add, args=(model, name), name="estimator-loader", daemon=True).start()

    def remove_estimator(self, name: str) -> None:
        """Take an added estimator off the list; its files stay. Raises ModelError as `add_estimator`."""
        self._require_switching("Removing an estimator")
        with self._changed:
            self._added = [one for one in self._added if one != name]
            offers = tuple(one for one in self._status.offers if one.name != name or not one.is_added)
            self._status = replace(self._status, offers=offers)

    def refit_estimator(self, name: str, marks: Sequence[MarkedAnswer]) -> None:
        """Calibrate an untrained estimator's answer risk on marks, for everybody who uses this app.

        Raises:
            ModelError: changing is turned off. BusyError: no model is ready. InputError: as `marks.refit`.
        """
        self._require_switching("Refitting an estimator")
        with self._admitted() as model:
            refit(model, name, marks, self._config.estimators_dir)
        self.refresh_estimators()

    def refresh_estimators(self) -> None:
        """Look again at what there is for the model, as after a training run."""
        with self._changed:
            model, added = self._model, tuple(self._added)
        if model is not None:
            offers = offers_of(model, added)
            with self._changed:
                if self._model is model:
                    self._status = replace(self._status, offers=offers)

    def _add(self, model: LanguageModel, name: str) -> None:
        error: str | None = f"{name} could not be opened: an unexpected error."
        try:
            error = model.describe(name).refusal
            with self._changed:
                self._added += [name] if error is None and name not in self._added else []
            self.refresh_estimators()
        except UqchatError as refusal:
            error = str(refusal)
        finally:
            with self._changed:
                self._status = replace(self._status, adding=None, adding_error=error)

    def cancel_switch(self) -> None:
        """Stop the job that is under way; without one nothing happens."""
        with self._changed:
            self._cancel.set()
            if self._job is not None:  # a step that is under way ends first, and that can take a while
                self._set(self._status.state, "Cancelling; this takes effect after the current step.")
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the job under way and free the model."""
        self.cancel_switch()
        job = self._job
        if job is not None and job is not threading.current_thread():
            job.join()
        with self._changed:
            model, self._model = self._model, None
            self._status = HostStatus("empty", None, "No model is loaded.")
        if model is not None:
            model.close()

    def status(self) -> HostStatus:
        """What the host does now; cheap enough to ask often."""
        return self._status

    def stream(
        self,
        messages: str | Iterable[Message | Mapping[str, Any]],
        estimators: Sequence[str] = ("entropy",),
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  (frozen)
        *,
        answer_prefix: Sequence[int] = (),
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Generator[ScoredToken, None, Answer]:
        """As `LanguageModel.stream`.

        Raises:
            BusyError: no model is ready (the text says why), or too many requests wait.
        """
        with self._changed:
            self._refuse()
        return self._stream(messages, estimators, generation, answer_prefix, stop, on_queue)

    def _stream(
        self,
        messages: str | Iterable[Message | Mapping[str, Any]],
        estimators: Sequence[str],
        generation: GenerationConfig,
        answer_prefix: Sequence[int],
        stop: threading.Event | None,
        on_queue: Callable[[int], None] | None,
    ) -> Generator[ScoredToken, None, Answer]:
        with self._admitted() as model:
            self._require_offered(estimators)
            return (
                yield from model.stream(
                    messages, estimators, generation, answer_prefix=answer_prefix, stop=stop, on_queue=on_queue
                )
            )

    def score(
        self,
        messages: str | Iterable[Message | Mapping[str, Any]],
        answer: str | Sequence[int],
        estimators: Sequence[str] = ("entropy",),
        *,
        stop: threading.Event | None = None,
        on_queue: Callable[[int], None] | None = None,
    ) -> Answer:
        """As `LanguageModel.score`; counts as a running answer. Raises BusyError as `stream`."""
        with self._admitted() as model:
            self._require_offered(estimators)
            return model.score(messages, answer, estimators, stop=stop, on_queue=on_queue)

    @property
    def name(self) -> str:
        """The model's; '' without one."""
        return self._status.model or ""

    def answers(
        self, list_of_messages: Sequence[Any], estimators: Sequence[str], generation: GenerationConfig
    ) -> list[Answer]:
        """As `LanguageModel.answers`; a batch counts as one running answer. Raises BusyError as `stream`."""
        with self._admitted() as model:
            self._require_offered(estimators)
            return model.answers(list_of_messages, estimators, generation)

    def scores(
        self, list_of_messages: Sequence[Any], answers: Sequence[Any], estimators: Sequence[str]
    ) -> list[Answer]:
        """As `LanguageModel.scores`; a batch counts as one running answer. Raises BusyError as `stream`."""
        with self._admitted() as model:
            self._require_offered(estimators)
            return model.scores(list_of_messages, answers, estimators)

    def _require_offered(self, estimators: Iterable[str]) -> None:
        """Where models may not be changed, no visitor makes this machine read a folder or fetch from the Hub."""
        offered = [offer.name for offer in self._status.offers]
        unknown = [name for name in estimators if name not in offered]
        if unknown and not self._config.allow_model_switch:
            raise ModelError(f"There is no estimator {str(unknown[0])[:80]!r} here. Known: {', '.join(offered)}.")

    @contextmanager
    def _admitted(self) -> Iterator[LanguageModel]:
        """Count one answer in and out; the model stays while any is counted."""
        with self._changed:
            model = self._refuse()
            self._admitted_count += 1
        try:
            yield model
        finally:
            with self._changed:
                self._admitted_count -= 1
                self._changed.notify_all()

    def _refuse(self) -> LanguageModel:
        if self._job is not None or self._model is None:
            raise BusyError(f"{self._status.message} Please ask again when a model is ready.")
        if self._admitted_count > self._config.max_queue:
            waiting = self._admitted_count - 1
            count = "1 request is" if waiting == 1 else f"{waiting} requests are"
            raise BusyError(f"{count} waiting for the model already. Please try again in a moment.")
        return self._model

    def _require_switching(self, what: str = "Changing the model") -> None:
        if not self._config.allow_model_switch:
            raise ModelError(f"{what} is turned off here; the operator can allow it with UQCHAT_ALLOW_MODEL_SWITCH=1.")

    def _begin(self, state: State, name: str | None, options: dict[str, Any]) -> None:
        with self._changed:
            if self._job is not None:
                raise BusyError(f"{self._status.message} Please wait, or cancel it first.")
            self._cancel = threading.Event()
            doing = f"The model is being changed to {name}." if name else "The model is being unloaded."
            self._set(state, f"{name} is being loaded." if state == "loading" else doing)
            # The token lives in this thread's arguments only, so it goes when the job ends.
            self._job = threading.Thread(target=self._run, args=(name, options), name="model-loader", daemon=True)
            self._job.start()

    def _run(self, name: str | None, options: dict[str, Any]) -> None:
        outcome: tuple[str, str | None] = ("", None)
        try:
            self._wait_for_answers(name)
            fresh = self._load_fresh(name, options) if name else None
            self._replace(fresh, offers_of(fresh, tuple(self._added)) if fresh else ())
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
        with self._changed:
            while self._admitted_count and not self._cancel.is_set():
                count = "1 answer" if self._admitted_count == 1 else f"{self._admitted_count} answers"
                self._set(self._status.state, f"Waiting for {count} to finish {goal}.")
                self._changed.wait()
        if self._cancel.is_set():
            raise ModelCancelledError("Cancelled.")

    def _load_fresh(self, name: str, options: dict[str, Any]) -> LanguageModel:
        if self._config.threads:
            import torch

            torch.set_num_threads(self._config.threads)
        return self._load(
            name,
            device=self._config.device,
            **options,
            trust_remote_code=self._config.trust_remote_code,
            cache_dir=self._config.cache_dir,
            on_progress=self._on_progress,
            cancel=self._cancel,
        )

    def _on_progress(self, progress: LoadProgress) -> None:
        with self._changed:
            self._set(self._status.state, f"{progress.message}.", progress.done, progress.total)

    def _replace(self, fresh: LanguageModel | None, offers: tuple[Offer, ...]) -> None:
        with self._changed:
            old, self._model = self._model, fresh
            self._status = replace(self._status, offers=offers)
        if old is not None:
            old.close()

    def _finish(self, message: str, error: str | None) -> None:
        with self._changed:
            self._job = None
            model = self._model
            if model is not None:
                text = f"{message} {model.name} is ready." if message else f"{model.name} is ready."
                self._set("ready", text, error=error, details=_details(model))
            else:
                self._set("failed" if error else "empty", message or "No model is loaded.", error=error)
            self._changed.notify_all()

    def _set(
        self,
        state: State,
        message: str,
        done: int | None = None,
        total: int | None = None,
        error: str | None = None,
        details: str = "",
    ) -> None:
        now, name = self._status, self._model.name if self._model else None
        self._status = HostStatus(
            state, name, message, done, total, error, details, now.offers, now.adding, now.adding_error
        )


def _details(model: LanguageModel) -> str:
    info = model.info
    number_format = f"{info.dtype}, {info.quantization}" if info.quantization else info.dtype
    parts = [f"{number_format} on {info.device}, {info.context_window:,} tokens", *info.notes]
    return "; ".join(parts)
