"""A language model as a grader: over an OpenAI-compatible endpoint, or one loaded here. Knows no folder.

The question to the judge follows calibration-tuning's "fuzzy" labels (Kapoor et al. 2024, appendix): problem, right
answer, a student's answer, yes or no. A reply that is neither gives no label.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from trainers.answers import AnswerRow
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.engine.prompt import build_prompt
from uqchat.errors import InputError
from uqchat.models import LoadedModel
from uqchat.types import Message

Grader = Callable[[AnswerRow], bool | None]
SYSTEM = "You help a teacher to grade short answers. Judge the content, not the wording or the format."
MAX_TOKENS = 4
TRIES = 4
KEY = "OPENAI_API_KEY"


def judge_prompt(row: AnswerRow) -> str:
    """What the judge is asked about one answer."""
    right = " or ".join(row.references)
    return (
        f"The problem: {row.question}\n\nThe correct answer: {right}\n\nThe student's answer: {row.text.strip()}\n\n"
        "The student's answer must be correct and specific; several different answers are wrong. New York City and NYC"
        " are the same. Is the student's answer equivalent to the correct one? Reply with yes or no only."
    )


def read_verdict(reply: str) -> bool | None:
    """Whether the answer is wrong: from the first yes or no of a reply; None without one."""
    found = re.search(r"\b(yes|no)\b", reply.lower())
    return None if found is None else found[1] == "no"


def endpoint_grader(url: str, model: str, key: str | None = None, timeout: float = 60.0, pause: float = 1.0) -> Grader:
    """A grader that asks `<url>/chat/completions`.

    Args:
        url: the base, such as http://localhost:8000/v1. key: None takes the environment variable OPENAI_API_KEY.
        timeout: seconds for one reply. pause: seconds before the second try; doubled for each further one.

    The grader raises InputError when the endpoint refuses, or does not answer after four tries.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"The grader's address must begin with http:// or https://; got {url!r}.")
    key = os.environ.get(KEY, "") if key is None else key
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def grade(row: AnswerRow) -> bool | None:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": judge_prompt(row)}]
        body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        request = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        reply = _reply(request, timeout, pause)
        try:
            return read_verdict(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(f"The grader at {url} answered in another form: {str(reply)[:200]!r}.") from error

    return grade


def _reply(request: urllib.request.Request, timeout: float, pause: float) -> Any:
    """The endpoint's JSON; tries again when it is busy or away."""
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310  the scheme was checked
                return json.load(response)
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.read(300).decode(errors='replace').strip()}"
            if error.code not in (408, 409, 429) and error.code < 500:
                raise InputError(f"The grader at {request.full_url} refuses: {reason}.") from error
        except (OSError, ValueError) as error:
            reason = str(error)
    raise InputError(f"The grader at {request.full_url} gave no reply after {TRIES} tries: {reason}.")


def model_grader(model: LoadedModel) -> Grader:
    """A grader that asks a model loaded here."""
    engine = Engine(model.model, model.tokenizer)
    config = GenerationConfig(max_new_tokens=MAX_TOKENS)

    def grade(row: AnswerRow) -> bool | None:
        messages = [Message("system", SYSTEM), Message("user", judge_prompt(row))]
        prompt = build_prompt(messages, model.tokenizer, model.context_window, MAX_TOKENS, engine.tags, MAX_TOKENS)
        events = engine.stream([Request(prompt.ids, config, open_tag=prompt.open_tag)])
        return read_verdict("".join(event.step.text for event in events if isinstance(event, StepEvent)))

    return grade
