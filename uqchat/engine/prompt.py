"""Messages to prompt ids through the model's own chat template, cut to the context window. Runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from uqchat.engine.text import ReasoningTags, tag_left_open
from uqchat.errors import InputError
from uqchat.types import Message

MIN_ANSWER = 16  # tokens that must at least be left for the answer before older turns are dropped for it


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and what had to be left out of it."""

    ids: tuple[int, ...]
    room: int  # tokens left for the answer
    dropped_messages: int = 0
    open_tag: ReasoningTags | None = None
    messages: tuple[Message, ...] = ()  # those that are in it


def build_prompt(
    messages: Sequence[Message],
    tokenizer: Any,
    context_window: int,
    wanted: int,
    tags: Sequence[ReasoningTags] = (),
    needed: int | None = None,
) -> Prompt:
    """Render the messages; while prompt and answer do not fit, drop the oldest turn after the system message.

    Args:
        wanted: tokens that the answer may take.
        needed: tokens that must fit, when a given answer is scored; else as many as `MIN_ANSWER` are enough.

    Raises:
        InputError: no messages, the template refuses them, or the newest message alone is too long.
    """
    if not messages:
        raise InputError("There are no messages; give at least one user message.")
    system = [m for m in messages[:1] if m.role == "system"]
    turns = list(messages[len(system) :])
    if not turns:
        raise InputError("There is only a system message; give at least one user message.")
    least = min(wanted, MIN_ANSWER) if needed is None else needed
    dropped = 0
    while True:
        text = _render([*system, *turns], tokenizer)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        room = context_window - len(ids)
        if room >= min(wanted, context_window // 2) or (room >= least and len(turns) == 1):
            return Prompt(tuple(ids), room, dropped, tag_left_open(text, tags), (*system, *turns))
        if len(turns) == 1:
            raise InputError(
                f"The newest message is too long: the prompt has {len(ids):,} tokens and the answer needs {least:,}, "
                f"but this model's context window holds {context_window:,}. Shorten the message."
            )
        count = _first_turn(turns)
        turns, dropped = turns[count:], dropped + count


def _first_turn(turns: Sequence[Message]) -> int:
    """Messages up to the second user message: a question with its answer; never the newest message."""
    later = (i for i, message in enumerate(turns) if i and message.role == "user")
    return min(next(later, 1), len(turns) - 1)


def _render(messages: Sequence[Message], tokenizer: Any) -> str:
    try:
        return tokenizer.apply_chat_template(
            [message.to_dict() for message in messages], tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise InputError(
            f"This model's chat template refuses the messages: {error}. "
            "Some models take no system message, or only user and assistant in turn."
        ) from error
