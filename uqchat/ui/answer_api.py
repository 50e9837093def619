"""The endpoints for programs: a message in, an answer with risks out. Knows no component and no chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uqchat.config import AppConfig, GenerationConfig
from uqchat.host import ModelHost
from uqchat.prompt_text import clean_answer, clean_prompt, clean_text
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
            messages = _messages(message, system, config.max_prompt_chars)
            generation = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
            return drain(host.stream(messages, estimators or host.status().estimators, generation)).to_json()

    return answer


def make_score_endpoint(host: ModelHost, config: AppConfig) -> Callable[..., dict[str, Any]]:
    """The function behind `/score`, over this host."""

    def score(question: str, answer: str, estimators: list[str] | None = None, system: str = "") -> dict[str, Any]:
        """Scores every token of an answer that is already written. Nothing is generated, nothing is stored.

        Args:
            question: what the answer is to.
            answer: the text to score.
            estimators: names of the estimators of risk; all of them if left out.
            system: a system message, left out when empty.

        Returns:
            {"text", "tokens", "risks", "summaries", "finish_reason", ...}, as `Answer.to_json`.
        """
        with shown_to_user():
            messages = _messages(question, system, config.max_prompt_chars)
            text = clean_answer(answer, config.max_prompt_chars)
            return host.score(messages, text, estimators or host.status().estimators).to_json()

    return score


def _messages(question: str, system: str, max_chars: int) -> list[Message]:
    messages = [Message("user", clean_prompt(question, max_chars))]
    if system:
        messages.insert(0, Message("system", clean_text(system, max_chars, "The system message")))
    return messages
