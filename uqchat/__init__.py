"""uqchat: a chat that shows which tokens of a language model's answer are likely to be wrong.

import uqchat
model = uqchat.load()
answer = model.answer("What is the capital of France?", estimators=("entropy", "margin"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uqchat.config import GenerationConfig
from uqchat.errors import UqchatError
from uqchat.quick_imports import quick_imports
from uqchat.types import Answer, Message, Risk, ScoredToken, Summary

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel, load
    from uqchat.wrapping import wrap

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "GenerationConfig",
    "LanguageModel",
    "Message",
    "Risk",
    "ScoredToken",
    "Summary",
    "UqchatError",
    "load",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Names that need torch come in when first used, so that `import uqchat` stays quick."""
    if name in ("load", "LanguageModel"):
        with quick_imports():
            from uqchat import language_model

        return getattr(language_model, name)
    if name == "wrap":
        from uqchat.wrapping import wrap

        return wrap
    raise AttributeError(f"module 'uqchat' has no attribute {name!r}")
