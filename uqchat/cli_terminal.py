"""What the shell writes: standard output kept clean, tokens tinted with ANSI colours. Knows no model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TextIO

from uqchat.types import Answer, ScoredToken

# Background per risk bin, blue to vermilion, as (24-bit RGB, nearest of the 256 colours); text on it is black.
BACKGROUNDS = (
    ((198, 226, 245), 153),
    ((226, 238, 246), 255),
    ((252, 238, 196), 230),
    ((250, 200, 140), 222),
    ((240, 150, 110), 209),
)
UNDERLINED_FROM = 3  # the two riskiest bins are underlined too, for readers who do not see the colours


@contextmanager
def real_stdout() -> Iterator[TextIO]:
    """Yield standard output and send everything else that writes there, down to C libraries, to standard error."""
    before = sys.stdout
    before.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    if is_own := _is_descriptor_1(before):  # it stays in place, for readline draws its prompt on descriptor 1
        out: TextIO = os.fdopen(os.dup(saved), "w", encoding="utf-8", errors="backslashreplace")
    else:
        out, sys.stdout = before, sys.stderr
    try:
        yield out
    finally:
        with suppress(BrokenPipeError):
            out.flush()
        before.flush()  # what others wrote must leave before descriptor 1 is standard output again
        sys.stdout = before
        os.dup2(saved, 1)
        os.close(saved)
        if is_own:
            with suppress(BrokenPipeError):
                out.close()


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except OSError:
        return False


def colour_depth(out: TextIO, environ: Mapping[str, str] = os.environ) -> int:
    """Colours to use on `out`: 0 for a file, a pipe or NO_COLOR, else 256 or 2**24."""
    if not out.isatty() or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return 0
    return 2**24 if environ.get("COLORTERM") in ("truecolor", "24bit") else 256


def printable(text: str) -> str:
    """`text` without the control characters by which an answer could drive the terminal; they show as pictures."""
    return "".join(_picture(ch) for ch in text)


def _picture(ch: str) -> str:
    code = ord(ch)
    if ch in "\n\t" or not (code < 32 or 127 <= code < 160):
        return ch
    return chr(0x2400 + code) if code < 32 else "\ufffd"


def tint(text: str, risk: float, depth: int) -> str:
    """Printable `text` on the background of its risk in [0, 1]; without colour when `depth` is 0."""
    if depth == 0 or not text:
        return printable(text)
    level = min(int(risk * 5), 4)
    (red, green, blue), index = BACKGROUNDS[level]
    background = f"48;2;{red};{green};{blue}" if depth > 256 else f"48;5;{index}"
    start = f"\x1b[{'4;' if level >= UNDERLINED_FROM else ''}30;{background}m"
    return "\n".join(f"{start}{line}\x1b[0m" if line else "" for line in printable(text).split("\n"))


class TokenWriter:
    """Writes tokens as they come, tinted by one estimator; a character made of several ids takes their largest risk."""

    def __init__(self, out: TextIO, estimator: str, depth: int | None = None) -> None:
        self.out = out
        self.estimator = estimator
        self.depth = colour_depth(out) if depth is None else depth
        self.is_raw = self.depth == 0 and not out.isatty()  # a file gets the exact text
        self._next = 0
        self._pending = 0.0
        self._untinted: set[int] = set()  # indices of tokens that were written before they had a risk

    def write(self, token: ScoredToken) -> None:
        """Write one token; a revision of one already written is left to `is_behind` and the summary."""
        if token.index < self._next:
            return
        self._next = token.index + 1
        risk = token.risks.get(self.estimator)
        self._pending = max(self._pending, risk.value if risk and not token.is_reasoning else 0.0)
        if not token.text:
            return
        if risk is None and not token.is_reasoning:
            self._untinted.add(token.index)
        self.out.write(token.text if self.is_raw else self._drawn(token, risk is None))
        self.out.flush()
        self._pending = 0.0

    def is_behind(self, answer: Answer) -> bool:
        """Whether there are colours here, and tokens that were written without one have a risk by now."""
        late = (token for token in answer.tokens if token.index in self._untinted)
        return self.depth > 0 and any(self.estimator in token.risks for token in late)

    def _drawn(self, token: ScoredToken, is_unscored: bool) -> str:
        if is_unscored or token.is_reasoning:
            return printable(token.text)
        return tint(token.text, self._pending, self.depth)


def summary_line(answer: Answer) -> str:
    """One line about a finished answer: model, tokens, why it ended, risk per estimator, speed."""
    risks = ", ".join(f"{name} {risk.value:.2f}" for name, risk in answer.risks.items())
    parts = [answer.model, f"{len(answer.tokens)} tokens", f"ended by {answer.finish_reason}", f"mean risk: {risks}"]
    if answer.timings.total > 0:
        parts.append(f"{len(answer.tokens) / answer.timings.total:.1f} tokens/s")
    if answer.dropped_messages:
        parts.append(f"{answer.dropped_messages} oldest messages left out (context full)")
    return " · ".join(part for part in parts if part)
