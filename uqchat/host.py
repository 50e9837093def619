"""The model that everybody on the page shares: loaded in the background, switched, unloaded, asked. Knows no interface.

Its place, and the job that may change it, are `host_slot`'s. Trained estimators are added to the list in the background
too, while answers go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from uqchat.config import AppConfig, GenerationConfig
from uqchat.errors import BusyError, ModelError, UqchatError
from uqchat.host_estimators import Offer, offers_of
from uqchat.host_slot import ModelSlot
from uqchat.host_status import HostStatus, State
from uqchat.marks import MarkedAnswer, refit
from uqchat.quick_imports import quick_imports

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel
    from uqchat.types import Answer, Message, ScoredToken


def load_language_model(name: str, **options: Any) -> LanguageModel:
    """The real thing: `load_model` with the same arguments, made into a `LanguageModel`."""
    with quick_imports():
        from uqchat.language_model import from_loaded
        from uqchat.models import load_model
        from uqchat.teams import in_a_thread

        return from_loaded(in_a_thread(lambda: load_model(name, **options)))


class ModelHost:
    """Owns the language model and hands out its answers; safe to use from many threads.

    Args:
        config: which model to begin with, where it runs, who may switch.
        load: makes a language model; takes what `load_model` takes.
    """

    def __init__(self, config: AppConfig, load: Callable[..., LanguageModel] = load_language_model) -> None:
        self._config = config
        self._load = load
        self._slot = ModelSlot(config.max_queue)
        self._added: list[str] = []  # estimators named on the page, tried with every model; guarded by the slot's lock

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
        self._slot.begin("switching", None, None)

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
        with self._slot.lock:
            model = self._slot.ready("try again")
            if self._slot.status.adding:
                raise BusyError(f"{self._slot.status.adding} is being opened. Please wait for it.")
            self._slot.note(adding=name, adding_error=None)
        threading.Thread(target=self._add, args=(model, name), name="estimator-loader", daemon=True).start()

    def remove_estimator(self, name: str) -> None:
        """Take an added estimator off the list; its files stay. Raises ModelError as `add_estimator`."""
        self._require_switching("Removing an estimator")
        with self._slot.lock:
            self._added = [one for one in self._added if one != name]
            self._slot.note(offers=tuple(o for o in self._slot.status.offers if o.name != name or not o.is_added))

    def refit_estimator(self, name: str, marks: Sequence[MarkedAnswer]) -> None:
        """Calibrate an untrained estimator's answer risk on marks, for everybody who uses this app.

        Raises:
            ModelError: changing is turned off. BusyError: no model is ready. InputError: as `marks.refit`.
        """
        self._require_switching("Refitting an estimator")
        with self._slot.admitted() as model:
            refit(model, name, marks, self._config.estimators_dir)
        self.refresh_estimators()

    def refresh_estimators(self) -> None:
        """Look again at what there is for the model, as after a training run."""
        with self._slot.lock:
            model, added = self._slot.model, tuple(self._added)
        if model is not None:
            offers = offers_of(model, added)
            with self._slot.lock:
                if self._slot.model is model:
                    self._slot.note(offers=offers)

    def _add(self, model: LanguageModel, name: str) -> None:
        error: str | None = f"{name} could not be opened: an unexpected error."
        try:
            error = model.describe(name).refusal
            with self._slot.lock:
                self._added += [name] if error is None and name not in self._added else []
            self.refresh_estimators()
        except UqchatError as refusal:
            error = str(refusal)
        finally:
            self._slot.note(adding=None, adding_error=error)

    def cancel_switch(self) -> None:
        """Stop the job that is under way; without one nothing happens."""
        self._slot.cancel()

    def close(self) -> None:
        """Stop the job under way and free the model."""
        self._slot.close()

    def status(self) -> HostStatus:
        """What the host does now; cheap enough to ask often."""
        return self._slot.status

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
        self._slot.require()
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
        with self._slot.admitted() as model:
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
        with self._slot.admitted() as model:
            self._require_offered(estimators)
            return model.score(messages, answer, estimators, stop=stop, on_queue=on_queue)

    @property
    def name(self) -> str:
        """The model's; '' without one."""
        return self._slot.status.model or ""

    def answers(
        self, list_of_messages: Sequence[Any], estimators: Sequence[str], generation: GenerationConfig
    ) -> list[Answer]:
        """As `LanguageModel.answers`; a batch counts as one running answer. Raises BusyError as `stream`."""
        with self._slot.admitted() as model:
            self._require_offered(estimators)
            return model.answers(list_of_messages, estimators, generation)

    def scores(
        self, list_of_messages: Sequence[Any], answers: Sequence[Any], estimators: Sequence[str]
    ) -> list[Answer]:
        """As `LanguageModel.scores`; a batch counts as one running answer. Raises BusyError as `stream`."""
        with self._slot.admitted() as model:
            self._require_offered(estimators)
            return model.scores(list_of_messages, answers, estimators)

    def _require_offered(self, estimators: Iterable[str]) -> None:
        """Where models may not be changed, no visitor makes this machine read a folder or fetch from the Hub."""
        offered = [offer.name for offer in self._slot.status.offers]
        unknown = [name for name in estimators if name not in offered]
        if unknown and not self._config.allow_model_switch:
            raise ModelError(f"There is no estimator {str(unknown[0])[:80]!r} here. Known: {', '.join(offered)}.")

    def _require_switching(self, what: str = "Changing the model") -> None:
        if not self._config.allow_model_switch:
            raise ModelError(f"{what} is turned off here; the operator can allow it with UQCHAT_ALLOW_MODEL_SWITCH=1.")

    def _begin(self, state: State, name: str, options: dict[str, Any]) -> None:
        self._slot.begin(state, name, partial(self._load_fresh, name, options))

    def _load_fresh(
        self, name: str, options: dict[str, Any], cancel: threading.Event
    ) -> tuple[LanguageModel, tuple[Offer, ...]]:
        if self._config.threads:
            import torch

            torch.set_num_threads(self._config.threads)
        fresh = self._load(
            name,
            device=self._config.device,
            **options,
            trust_remote_code=self._config.trust_remote_code,
            cache_dir=self._config.cache_dir,
            on_progress=self._slot.progress,
            cancel=cancel,
        )
        return fresh, offers_of(fresh, tuple(self._added))
