"""The endpoint for programs: a message in, an answer with risks out. Knows no component and no chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uqchat.config import AppConfig, GenerationConfig
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.host import ModelHost
from uqchat.prompt_text import clean_prompt, clean_text
from uqchat.types import Message
from uqchat.ui.services import shown_to_user


def make_answer_endpoint(host: ModelHost, config: AppConfig) -> Callable[..., dict[str, Any]]:
    """The function behind `/answer`, over this host."""

    def answer(
        message: str,
        estimators: list[str] | None = None,
        system: str = "",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Answers one message and scores every token. Nothing is stored.

        Args:
            message: the question.
            estimators: names of the estimators of risk; all of them if left out.
            system: a system message, left out when empty.
            max_new_tokens: tokens at most.
            temperature: 0 is greedy.
            seed: same seed, same answer.

        Returns:
            {"text", "tokens", "risks", "summaries", "finish_reason", ...}, as `Answer.to_json`.
        """
        from uqchat.language_model import drain  # brings torch, which a page that is just opening does not wait for

        with shown_to_user():
            messages = [Message("user", clean_prompt(message, config.max_prompt_chars))]
            if system:
                messages.insert(0, Message("system", clean_text(system, config.max_prompt_chars, "The system message")))
            generation = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            return drain(host.stream(messages, estimators or ESTIMATOR_NAMES, generation)).to_json()

    return answer
