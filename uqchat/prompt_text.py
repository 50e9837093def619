"""What a typed text must look like, and which messages of a branch go to the model. Knows no database and no model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from uqchat.errors import InputError
from uqchat.store import StoredMessage
from uqchat.types import Message

TITLE_CHARS = 60
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_text(text: str, max_chars: int, what: str = "The message") -> str:
    """The text as typed, except: line ends become \\n, control characters go, halves of surrogate pairs become U+FFFD.

    Raises:
        InputError: more than `max_chars` characters are left.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _LONE_SURROGATE.sub("\ufffd", _CONTROL.sub("", text))
    if len(text) > max_chars:
        raise InputError(f"{what} has {len(text):,} characters; {max_chars:,} are allowed. Shorten it or split it.")
    return text


def has_control_characters(text: str) -> bool:
    """Whether `clean_text` takes something out that the reader should hear of."""
    return bool(_CONTROL.search(text.replace("\r\n", "\n").replace("\r", "\n")))


def clean_prompt(text: str, max_chars: int) -> str:
    """As `clean_text`. Raises InputError also when nothing visible is left."""
    return _visible(clean_text(text, max_chars), "The message is empty. Type a question first.")


def clean_answer(text: str, max_chars: int) -> str:
    """As `clean_prompt`, for an answer that is to be scored."""
    return _visible(clean_text(text, max_chars, "The answer"), "The answer is empty. Paste the text to score.")


def _visible(text: str, error: str) -> str:
    if not any(_is_visible(character) for character in text):
        raise InputError(error)
    return text


def _is_visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) != "Cf"


def title_of(prompt: str) -> str:
    """The first line that is not empty, at most TITLE_CHARS characters of it."""
    line = next(line.strip() for line in prompt.splitlines() if any(map(_is_visible, line)))
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rstrip() + "…"


def text_for_model(message: StoredMessage) -> str:
    """A message without its reasoning, as the next turn's context."""
    if not any(token.is_reasoning for token in message.tokens):
        return message.text
    return "".join(token.text for token in message.tokens if not token.is_reasoning).lstrip()


def messages_for_model(branch: Sequence[StoredMessage], system: str = "") -> list[Message]:
    """The system message, if any, then the branch in turns.

    A question whose answer stayed empty (stopped or failed before its first token) is left out with that answer, and so
    is an answer without a question: many chat templates refuse turns that do not alternate.
    """
    turns: list[Message] = []
    for message in (message for message in branch if message.role != "system"):
        text = text_for_model(message)
        if turns and (turns[-1].role == message.role or not text):
            turns.pop()
        if text and (turns or message.role == "user"):
            turns.append(Message(message.role, text))
    return ([Message("system", system.strip())] if system.strip() else []) + turns
