"""Errors whose text is meant for the user. Knows no interface: `ui/` and the shell decide how to show them."""


class UqchatError(Exception):
    """Something the user can mend: the text says what is wrong, what came in and what is allowed."""


class ModelError(UqchatError):
    """A language model cannot be found, fetched, read or run."""


class ModelCancelledError(ModelError):
    """Loading a model was stopped at the user's request."""


class CancelledError(UqchatError):
    """What was under way was stopped at the user's request."""


class InputError(UqchatError):
    """A message, setting or file that came in is not usable."""


class BusyError(UqchatError):
    """The waiting queue is full, or a model switch is under way."""


class StoreError(UqchatError):
    """The database refuses: unknown id, another user's row, a full disk."""
