"""Token ids to text, one piece for every id, while the answer grows. Knows no model, only a decode function.

A piece can be final only when nothing that follows may change it, so tokens are held back while the end of the text
is an unfinished character, the possible beginning of a stop string, or of a tag that opens the model's reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from uqchat.types import Span

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders give for bytes that are no character yet
REASONING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)


class Detokenizer:
    """Incremental decoding: pieces joined equal the decoded whole.

    Decodes from the last character boundary but one, so that a decoder which strips the first token's leading space
    does so in both texts that are compared.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # ids of the last finished piece
        self._fresh: list[int] = []  # ids since then
        self._before_text = ""

    @property
    def is_pending(self) -> bool:
        """Whether bytes wait for the rest of their character."""
        return bool(self._fresh)

    def push(self, token_id: int) -> str:
        """The text that this id completes; '' while a character is unfinished or the id has no text."""
        self._fresh.append(token_id)
        text = self._decode(self._before + self._fresh)
        if text.endswith(UNFINISHED):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """The text of bytes that will never become a character."""
        return self._advance(self._decode(self._before + self._fresh)) if self._fresh else ""

    def _advance(self, text: str) -> str:
        piece = text[len(self._before_text) :]
        if piece:
            self._before, self._before_text = self._fresh, self._decode(self._fresh)
            self._fresh = []
        else:  # an id without text, such as a special token: keep the context before it
            self._before, self._fresh = self._before + self._fresh, []
        return piece


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """A pair of tags around a model's reasoning, as text and, where each is one token, as ids."""

    opening: str
    closing: str
    opening_id: int | None = None
    closing_id: int | None = None


def find_reasoning_tags(chat_template: str | None, vocabulary: dict[str, int]) -> tuple[ReasoningTags, ...]:
    """The tags that this model's chat template or vocabulary names; `<think>` always counts."""
    known = [
        pair
        for pair in REASONING_TAGS
        if pair[0] == "<think>" or pair[0] in vocabulary or pair[1] in (chat_template or "")
    ]
    return tuple(ReasoningTags(o, c, vocabulary.get(o), vocabulary.get(c)) for o, c in known)


@dataclass(slots=True)
class Piece:
    """One id's final text, place and kind."""

    token_id: int
    text: str
    span: Span = (0, 0)
    is_reasoning: bool = False


@dataclass
class AnswerText:
    """Pieces of one answer with exact spans, cut at stop strings, reasoning marked.

    Args:
        detokenizer: fresh, for this answer.
        stop_strings: the answer ends before the first that appears.
        tags: pairs that may enclose reasoning at the start of the answer.
        open_tag: the pair that the prompt has already opened, if any.
    """

    detokenizer: Detokenizer
    stop_strings: Sequence[str] = ()
    tags: Sequence[ReasoningTags] = ()
    open_tag: ReasoningTags | None = None
    is_stopped: bool = False
    _held: list[Piece] = field(default_factory=list)
    _length: int = 0
    _is_at_start: bool = True
    _reasoning_tail: str = ""

    def __post_init__(self) -> None:
        self._is_at_start = self.open_tag is None and bool(self.tags)

    def push(self, token_id: int) -> list[Piece]:
        """Add an id; returns the pieces, in order, that have become final. Sets `is_stopped` at a stop string."""
        text = self.detokenizer.push(token_id)
        self._held.append(Piece(token_id, "" if self.is_stopped else text))
        self._mark_opening()
        stop_at = self._find_stop()
        if stop_at is not None:
            self.is_stopped = True
            self._cut(stop_at)
            return self._release(len(self._held))
        return self._release(self._count_final())

    def flush(self) -> list[Piece]:
        """All pieces that are still held, at the end of the answer."""
        if self._held:
            self._held[-1].text += self.detokenizer.flush()
            self._is_at_start = False
        return self._release(len(self._held))

    def _tail(self) -> str:
        return "".join(piece.text for piece in self._held)

    def _find_stop(self) -> int | None:
        tail = self._tail()
        return min((at for at in map(tail.find, self.stop_strings) if at >= 0), default=None)

    def _cut(self, length: int) -> None:
        for piece in self._held:
            piece.text = piece.text[:length]
            length -= len(piece.text)

    def _mark_opening(self) -> None:
        """Enter reasoning when the answer begins with an opening tag."""
        if not self._is_at_start:
            return
        tail = self._tail().lstrip()
        last = self._held[-1].token_id
        found = [t for t in self.tags if tail.startswith(t.opening) or t.opening_id == last]
        if found:
            self.open_tag = found[0]
        may_open = any(t.opening.startswith(tail) for t in self.tags)
        self._is_at_start = not found and may_open

    def _count_final(self) -> int:
        """How many held pieces can be let go: those wholly before anything that later text may change."""
        if self._is_at_start:
            return 0
        free = self._free_length()
        count, end = 0, 0
        for piece in self._held:
            end += len(piece.text)
            if end > free:
                break
            count += 1
        if self.detokenizer.is_pending:
            while count and not self._held[count - 1].text:
                count -= 1
        return count

    def _free_length(self) -> int:
        """Length of the held text before a possible beginning of a stop string."""
        tail = self._tail()
        longest = max(map(len, self.stop_strings), default=0)
        for start in range(max(0, len(tail) - longest + 1), len(tail)):
            if any(stop.startswith(tail[start:]) for stop in self.stop_strings):
                return start
        return len(tail)

    def _release(self, count: int) -> list[Piece]:
        released, self._held = self._held[:count], self._held[count:]
        for piece in released:
            piece.span = (self._length, self._length + len(piece.text))
            self._length += len(piece.text)
            piece.is_reasoning = self.open_tag is not None
            self._leave_reasoning(piece)
        return released

    def _leave_reasoning(self, piece: Piece) -> None:
        if self.open_tag is None:
            return
        closing = self.open_tag.closing
        text = self._reasoning_tail + piece.text
        if closing in text or piece.token_id == self.open_tag.closing_id:
            self.open_tag = None
        self._reasoning_tail = text[-(len(closing) - 1) :]


def tag_left_open(prompt: str, tags: Iterable[ReasoningTags]) -> ReasoningTags | None:
    """The tag that the rendered prompt ends in, as templates of reasoning models do."""
    return next((tag for tag in tags if prompt.rstrip().endswith(tag.opening)), None)
