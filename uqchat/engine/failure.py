"""What a failing forward means for people: is it memory, and what to tell. Knows no row and no thread."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from uqchat.errors import ModelError, UqchatError

log = logging.getLogger(__name__)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which fewer or shorter rows mend; torch's CPU allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def explain(error: Exception) -> UqchatError:
    """The error that the asker sees."""
    if is_out_of_memory(error):
        return ModelError(
            "Out of memory while answering. Shorten the conversation, lower the maximum number of tokens, "
            "or load a smaller or quantised model."
        )
    if isinstance(error, UqchatError):
        return error
    return ModelError(f"The model failed while answering ({type(error).__name__}: {error}). The log has more.")


@contextmanager
def if_memory_allows(otherwise: str) -> Iterator[None]:
    """Around something that only saves time: where memory runs out, it is left undone and `otherwise` is logged."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory: %s", otherwise)
