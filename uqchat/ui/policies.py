"""Which policy this browser's chats obey: chosen in the settings, or applied from the playground. Thin handlers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from uqchat.config import AppConfig
from uqchat.errors import InputError
from uqchat.policy import parse_policy
from uqchat.ui.playground import PlaygroundHandlers
from uqchat.ui.playground_layout import Playground
from uqchat.ui.services import Services, shown_to_user

Updates = dict[Any, Any]
_MAX_BYTES = 1_000_000
NONE = ("None: every answer is given", "")


@dataclass(frozen=True)
class PolicyChoice:
    """`kept` is the browser's {"user", "policy"}; `chosen` shows it."""

    kept: gr.BrowserState
    chosen: gr.Dropdown


def keep_in_browser(config: AppConfig) -> gr.BrowserState:
    """What remembers the choice; it must not stand in a tab, whose parts are not there until it is opened."""
    return gr.BrowserState(None, storage_key="uqchat-policy", secret=config.browser_secret())


def build_picker() -> gr.Dropdown:
    """The picker, where the settings stand."""
    return gr.Dropdown(
        [NONE], value="", label="Policy", info="What answers obey; the playground makes them.", elem_id="uq-policy"
    )


class PolicyHandlers:
    """Keeps tab, browser and picker agreed."""

    def __init__(self, services: Services, choice: PolicyChoice, playground: PlaygroundHandlers) -> None:
        self._services, self._choice, self._playground = services, choice, playground
        self._store = services.conversations.policies

    def on_load(self, request: gr.Request, user: str | None, kept: object) -> Updates:
        """The page is opened: what this browser's user chose last is obeyed again, if it is still there."""
        with shown_to_user():
            name, session = self._services.who(request, user)
            ref = kept.get("policy", "") if isinstance(kept, dict) and kept.get("user") == name else ""
            session.policy = ref if isinstance(ref, str) and self._is_known(ref) else ""
            return {self._choice.chosen: self._picker(session.policy)}

    def on_choose(self, request: gr.Request, user: str | None, ref: str | None) -> Updates:
        """Another policy, or none."""
        with shown_to_user():
            name, session = self._services.who(request, user)
            if ref:
                self._store.load(ref)
            session.policy = ref or ""
            return {self._choice.kept: {"user": name, "policy": session.policy}}

    def on_apply(self, request: gr.Request, user: str | None, *place: Any) -> Updates:
        """Apply to the chat: the threshold becomes a policy, which this browser's answers obey from now on."""
        with shown_to_user():
            name, session = self._services.who(request, user)
            policy, said = self._playground.keep_policy(request, *place)
            session.policy = policy.ref
            return said | {
                self._choice.chosen: self._picker(policy.ref),
                self._choice.kept: {"user": name, "policy": policy.ref},
            }

    def on_import(self, request: gr.Request, user: str | None, file: str) -> Updates:
        """A policy file is kept as the next version of its name; the settings offer it from then on."""
        with shown_to_user():
            _, session = self._services.who(request, user)
            path = Path(file)
            if path.stat().st_size > _MAX_BYTES:
                raise InputError(f"{path.name} is too large for a policy.")
            kept = self._store.save(parse_policy(path.read_bytes(), path.name))
            said = self._playground.said(f"{kept.ref} is kept; choose it under Settings, Policy. {kept.basis}")
            return said | {self._choice.chosen: self._picker(session.policy, kept.ref)}

    def _is_known(self, ref: str) -> bool:
        try:
            return not ref or bool(self._store.load(ref))
        except InputError:
            return False

    def _picker(self, ref: str, *others: str) -> gr.Dropdown:
        refs = dict.fromkeys([policy.ref for policy in self._store.newest()] + [one for one in (ref, *others) if one])
        return gr.Dropdown([NONE, *((one.replace("@", ", version "), one) for one in refs)], value=ref)


def connect(
    on: Callable[..., Any],
    opened: Any,
    handlers: PolicyHandlers,
    choice: PolicyChoice,
    user: gr.BrowserState,
    parts: Playground,
) -> None:
    """The events; `opened` is the event after which the page knows its user."""
    on(opened.then, handlers.on_load, [user, choice.kept], [choice.chosen])
    on(choice.chosen.input, handlers.on_choose, [user, choice.chosen], [choice.kept])
    place = [parts.position, parts.name, parts.action, parts.tries, parts.second]
    here = "(user, position, ...rest) => [user, window.uqPlayground.position(), ...rest]"
    on(parts.bring.upload, handlers.on_import, [user, parts.bring], [parts.said, choice.chosen])
    on(parts.apply.click, handlers.on_apply, [user, *place], [parts.said, choice.chosen, choice.kept], js=here)
