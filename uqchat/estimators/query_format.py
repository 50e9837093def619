"""The question that is put to the model about its own answer, and the tokens by which it says no or yes.

Knows tokenizers, no model and no estimator: the trainer builds its inputs here, and so does the page.
Source: Kapoor et al. 2024 (arXiv 2406.08391), section 4.2, "LoRA + Prompt"; the wording is that of the public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from uqchat.errors import InputError

Layout = Literal["chat", "text"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True, slots=True)
class QueryFormat:
    """One wording: the answer's last line is followed by `text`, and the next token is the reply."""

    name: str
    no: str
    yes: str

    @property
    def text(self) -> str:
        """What follows the answer; nothing comes after its last colon."""
        return f"\n\nIs the proposed answer correct?\nChoices:\n({self.no}): no\n({self.yes}): yes\nAnswer:"


FORMATS = (QueryFormat("roman_choice", "i", "ii"), QueryFormat("letter_choice", "a", "b"))
"""In order of preference. The first is the published one; the second is for vocabularies that lack a token "ii"."""


@dataclass(frozen=True, slots=True)
class Query:
    """A wording, in the ids of one tokenizer."""

    format: QueryFormat
    layout: Layout
    no_id: int
    yes_id: int

    @property
    def label_ids(self) -> tuple[int, int]:
        """(no, yes)."""
        return self.no_id, self.yes_id


def make_query(tokenizer: Any, layout: Layout = "chat", format_name: str | None = None) -> Query:
    """The wording by this name, or the first whose two replies are single tokens of this tokenizer.

    Args:
        layout: "chat": the answer's own ids, after the prompt that the model has read, and the query after them;
            "text": "Question: ...", "Answer: ..." as plain text without a chat template, as published.

    Raises:
        InputError: an unknown name or layout, or no wording whose replies this tokenizer can tell apart.
    """
    names = [fmt.name for fmt in FORMATS]
    if format_name is not None and format_name not in names:
        raise InputError(f"Unknown query format {format_name!r}. Known: {', '.join(names)}.")
    if layout not in LAYOUTS:
        raise InputError(f"Unknown query layout {layout!r}. Known: {', '.join(LAYOUTS)}.")
    for fmt in FORMATS:
        if format_name in (None, fmt.name):
            no_id, yes_id = label_id(tokenizer, fmt.no), label_id(tokenizer, fmt.yes)
            if no_id is not None and yes_id is not None and no_id != yes_id:
                return Query(fmt, layout, no_id, yes_id)
    tried = format_name or ", ".join(names)
    raise InputError(
        f"This model's tokenizer has no single tokens for the replies of the query ({tried}), so their probabilities"
        " cannot be read. Choose another estimator for this model."
    )


def label_id(tokenizer: Any, label: str) -> int | None:
    """The one token that stands for a reply; None when the tokenizer needs several or does not know it.

    It is the last id of the label tokenized alone: word-initial for SentencePiece, without a leading space for byte
    BPE, as in the published code. A lone word boundary before it is allowed, as some SentencePiece models give one.
    """
    ids = list(tokenizer(label, add_special_tokens=False)["input_ids"])
    if not ids or ids[-1] in (getattr(tokenizer, "all_special_ids", None) or ()):  # the unknown token is one of them
        return None
    is_whole = tokenizer.decode(ids[-1:]).strip() == label and not tokenizer.decode(ids[:-1]).strip()
    return ids[-1] if is_whole else None


def query_ids(
    query: Query,
    tokenizer: Any,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    window: int,
    question: str = "",
) -> tuple[int, ...]:
    """What the model reads; the logits of its last position hold the reply.

    Too long an input loses its beginning, never the query: the oldest ids of prompt and answer go first.

    Args:
        prompt_ids: that the model has read, for the layout "chat".
        answer_ids: without the end token.
        window: ids that fit into the model.
        question: the newest user message, for the layout "text".

    Raises:
        InputError: the window has no room for the query and one id of the answer.
    """
    asked = tuple(tokenizer(query.format.text, add_special_tokens=False)["input_ids"])
    if window <= len(asked):
        raise InputError(f"The query takes {len(asked)} tokens and this model's context window holds {window}.")
    if query.layout == "chat":
        return _fitted((*prompt_ids, *answer_ids, *asked), window)
    answer = tokenizer.decode(list(answer_ids), skip_special_tokens=True).strip()
    frame = f"Question: {question.strip()}\nAnswer: {answer}"
    ids = tuple(tokenizer(frame + query.format.text)["input_ids"])
    if ids and ids[-1] == getattr(tokenizer, "eos_token_id", None):
        ids = ids[:-1]  # some tokenizers close every text
    return _fitted(ids, window)


def _fitted(ids: tuple[int, ...], window: int) -> tuple[int, ...]:
    """The last ids that fit; a first id that is cut off is put back, since models lean on it."""
    return ids if len(ids) <= window else (ids[0], *ids[len(ids) - window + 1 :])
