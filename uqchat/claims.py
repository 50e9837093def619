"""The claims of an answer: its sentences, its names and numbers, or spans that the caller gives, and their risk.

Sentences come from `sentencex` (Wikimedia): maintained, compiled, no model and no dependency, some 300 languages by
rules. Names, numbers, dates and quotations come from rules; see `segment` for what these cannot find.
Knows no model, no head and no page.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from statistics import fmean
from typing import Literal, Protocol, get_args

from sentencex import get_sentence_boundaries

from uqchat.claims_rules import ENTITIES, GRAPHEMES, guess_language, is_function_word
from uqchat.errors import InputError
from uqchat.types import Risk, ScoredToken, Span

Kind = Literal["sentence", "entity"]
Aggregation = Literal["mean", "max"]
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TokenLike(Protocol):
    """What is asked of a token here: `TokenStep` and `ScoredToken` have it."""

    index: int
    text: str
    span: Span
    is_reasoning: bool
    is_end: bool


@dataclass(frozen=True, slots=True)
class ClaimRisk:
    """One claim and its risk; `worst` is the index of its riskiest token, `indices` are all of its tokens'.

    `calibration` names the scope in which `value` is a probability of error. An average of tokens' probabilities is
    not the probability that the claim is wrong, so only a claim whose tokens all have one and the same risk keeps it.
    """

    span: Span
    text: str
    value: float
    raw: float
    calibration: str | None
    indices: tuple[int, ...] = ()
    worst: int = -1


def segment(text: str, kind: Kind = "sentence", language: str | None = None) -> list[Span]:
    """Spans [start, end) in characters, in order; they never overlap and never cut a visible character in two.

    Args:
        kind: "sentence": the spans cover the text, the white space after a sentence belongs to it. "entity": words with
            a capital letter that stand together, numbers, dates, and what is quoted. By rules alone: in a script
            without capitals only the last three are found, in German every noun counts, and so does a rare first word
            of a sentence; numbers written as words are not found.
        language: two letters, such as "de"; None guesses by script and by function words.

    Raises:
        InputError: another kind.
    """
    if kind not in get_args(Kind):
        raise InputError(f"Claims can be split by {' or '.join(get_args(Kind))}; got {kind!r}.")
    sentences = _sentences(text, language or guess_language(text))
    return sentences if kind == "sentence" else _entities(text, sentences)


def given_spans(spans: Iterable[Span], text: str) -> list[Span]:
    """The caller's own spans of `text`, in order.

    Raises:
        InputError: a span is empty, lies outside the text, or overlaps another.
    """
    ordered = sorted((int(start), int(end)) for start, end in spans)
    end_before = 0
    for start, end in ordered:
        if not end_before <= start < end <= len(text):
            raise InputError(
                f"Claim [{start}, {end}) must hold at least one of the text's {len(text)} characters and begin at or "
                f"after {end_before}, where the claim before it ends."
            )
        end_before = end
    return ordered


def answer_spans(tokens: Sequence[TokenLike], kind: Kind = "sentence") -> list[Span]:
    """The spans of an answer that say something: reasoning is left out, and so is outer white space."""
    found = []
    for is_reasoning, run in groupby(tokens, key=lambda token: token.is_reasoning):
        group = list(run)
        if not is_reasoning:
            text, offset = "".join(token.text for token in group), group[0].span[0]
            found += [(offset + start, offset + end) for start, end in segment(text, kind)]
    text = "".join(token.text for token in tokens)
    return [trimmed for span in found if (trimmed := _trimmed(span, text))]


def token_indices(spans: Iterable[Span], tokens: Sequence[TokenLike]) -> list[tuple[int, ...]]:
    """The tokens of each span: those with at least one visible character inside it.

    A token that reaches into two spans belongs to both; one of white space alone, the end token and reasoning belong to
    none. The tokens of a character that several make up belong where the one that completes it does.

    Args:
        tokens: of one answer, all of them, in order.
    """
    places: list[tuple[int, int, tuple[int, ...]]] = []  # visible characters [start, end), indices
    waiting: list[int] = []
    for token in tokens:
        if token.is_end or token.is_reasoning:
            waiting = []
            continue
        waiting.append(token.index)
        if token.text:
            lead = len(token.text) - len(token.text.lstrip())
            if token.text.strip():
                start = token.span[0] + lead
                places.append((start, start + len(token.text.strip()), tuple(waiting)))
            waiting = []
    ends = [end for _, end, _ in places]
    return [_inside(span, places, ends) for span in spans]


def claim_risks(
    tokens: Sequence[ScoredToken], estimator: str, spans: Iterable[Span], aggregation: Aggregation = "mean"
) -> list[ClaimRisk]:
    """Risk of each span that has a token scored by `estimator`, in the order given.

    Args:
        aggregation: of a token estimator's values, and of its raw scores. "mean" is what an answer's own risk is, and
            keeps claims of different lengths comparable; "max" is the worst token, and grows with the length. Where an
            estimator scored the claim as a whole, its tokens agree and both give that score.

    Raises:
        InputError: another aggregation.
    """
    if aggregation not in get_args(Aggregation):
        raise InputError(f"Tokens' risks are joined by {' or '.join(get_args(Aggregation))}; got {aggregation!r}.")
    spans, text = list(spans), "".join(token.text for token in tokens)
    risks = {token.index: token.risks[estimator] for token in tokens if estimator in token.risks}
    risks = {index: risk for index, risk in risks.items() if not math.isnan(risk.value)}
    found = []
    for span, indices in zip(spans, token_indices(spans, tokens), strict=True):
        scored = {index: risks[index] for index in indices if index in risks}
        if scored:
            found.append(_claim(span, text[slice(*span)].strip(), indices, scored, aggregation))
    return found


def _claim(
    span: Span, text: str, indices: tuple[int, ...], scored: dict[int, Risk], aggregation: Aggregation
) -> ClaimRisk:
    worst = max(scored, key=lambda index: scored[index].value)
    if len(set(scored.values())) == 1:
        risk = scored[worst]
    elif aggregation == "max":
        risk = Risk(scored[worst].value, scored[worst].raw)
    else:
        risk = Risk(fmean(r.value for r in scored.values()), fmean(r.raw for r in scored.values()))
    return ClaimRisk(span, text, risk.value, risk.raw, risk.calibration, indices, worst)


def _inside(span: Span, places: Sequence[tuple[int, int, tuple[int, ...]]], ends: Sequence[int]) -> tuple[int, ...]:
    found: list[int] = []
    for start, _, indices in islice(places, bisect_right(ends, span[0]), None):  # those before end before the span
        if start >= span[1]:
            break
        found += indices
    return tuple(found)


def _sentences(text: str, language: str) -> list[Span]:
    whole = _LONE_SURROGATE.sub("\ufffd", text)  # compiled code knows no half of a surrogate pair
    cuts = [int(one["end_index"]) for one in get_sentence_boundaries(language, whole)]
    return _cut(text, _whole(text, cuts))


def _whole(text: str, cuts: Iterable[int]) -> list[int]:
    """The cuts, each moved to the end of the visible character that it falls into."""
    ends = [match.end() for match in GRAPHEMES.finditer(text)]
    return [ends[min(bisect_left(ends, cut), len(ends) - 1)] for cut in cuts if ends and cut > 0]


def _cut(text: str, cuts: Iterable[int]) -> list[Span]:
    """The text between the cuts; a piece without visible characters goes to the one before it, or after it."""
    spans: list[Span] = []
    start = 0
    for end in sorted({*cuts, len(text)}):
        if end <= start:
            continue
        if spans and not (text[start:end].strip() and text[slice(*spans[-1])].strip()):
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
        start = end
    return spans


def _entities(text: str, sentences: Sequence[Span]) -> list[Span]:
    found = []
    starts = {
        start + len(text[start:end]) - len(text[start:end].lstrip(' \t\n*#>-–•"“„«(')) for start, end in sentences
    }
    for match in ENTITIES.finditer(text):
        start, end = match.span()
        if match.lastgroup == "name":
            start = _without_function_words(text, start, end, start in starts)
            end -= 2 * text[start:end].endswith(("'s", "’s"))
        if start < end and text[start:end].strip():
            found.append((start, end))
    return _snapped(text, found)


def _without_function_words(text: str, start: int, end: int, is_first: bool) -> int:
    """Where the name begins when "The" or "In" at a sentence's start is no part of it; `end` when nothing is left."""
    while start < end:
        word = text[start:end].split(maxsplit=1)[0]
        if not (is_function_word(word) and (is_first or word == text[start:end])):
            return start
        rest = text[start + len(word) : end]
        start += len(word) + len(rest) - len(rest.lstrip())
    return end


def _snapped(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans widened to whole visible characters; those that then touch the one before them are joined to it."""
    starts = [match.start() for match in GRAPHEMES.finditer(text)]
    found: list[Span] = []
    for start, end in spans:
        place = bisect_left(starts, start + 1) - 1
        after = bisect_left(starts, end)
        wide = (starts[place], starts[after] if after < len(starts) else len(text))
        if found and wide[0] < found[-1][1]:
            wide = (found.pop()[0], wide[1])
        found.append(wide)
    return found


def _trimmed(span: Span, text: str) -> Span | None:
    piece = text[slice(*span)]
    start = span[0] + len(piece) - len(piece.lstrip())
    return (start, start + len(piece.strip())) if piece.strip() else None
