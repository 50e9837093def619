"""A model's answer against reference answers: right or wrong, and where in the answer the reference stands.

Knows words and letters, no meaning: "not Paris" holds Paris, and a synonym that is in no reference is wrong. Every
comparison is of words as `normalise` leaves them, so a reference matches whole words only ("Mali" is not in
"Somalia"); scripts written without spaces are compared character by character.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from uqchat.errors import InputError

_ARTICLES = frozenset({"a", "an", "the"})
_LETTERS_WITHOUT_DECOMPOSITION = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"}
_APOSTROPHES = frozenset("'’‘ʼʻ`´′")
_NUMBER_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_DIGITS_OF = {name: str(value) for value, name in enumerate(_NUMBER_NAMES)}
# Thai to Tibetan, Burmese, Khmer, kana, Han and Hangul: no spaces between words, or particles glued to them.
_UNSPACED = r"\u0E00-\u0FFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF"
_INDIC = r"\u0900-\u0963\u0966-\u0DFF"  # their vowel signs are no letters to `\w`
_LETTER = rf"(?:[^\W_{_UNSPACED}]|[{_INDIC}])"
_WORD = re.compile(
    rf"(?<![^\W_])-?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?![^\W_])"  # -1,234.5
    rf"|(?<![^\W_])[^\W\d_](?:\.[^\W\d_](?![^\W_])|\.\s[^\W\d_](?=\.))+"  # U.S.A, J. R. R.
    rf"|[{_UNSPACED}]"
    rf"|{_LETTER}+(?:'{_LETTER}+)*(?:[+#]+(?![^\W_]))?"  # O'Brien, C++
)
_CHOICE_ALONE = re.compile(r"\W*([a-z])\W*", re.IGNORECASE)
_CHOICE_NAMED = re.compile(
    r"\b(?i:answer|option|choice)\b\W*(?i:is|would be|are)?\W*(?i:option|choice|letter)?\W*"
    r"\b(?:([A-Z])\b(?:\W+(?:or|and)\W+([A-Z])\b)?|([a-z])\b(?!'|\s+\w))"
)
_CHOICE_MARKED = re.compile(r"(?:^|(?<=[\s(\[*]))([A-Za-z])(?:[.:](?=\s|$|\*)|[)\]])")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text as it is compared: `form` as `normalise` shows it, `forms` all that count as equal to it.

    `start`, `end` are characters of the original text.
    """

    form: str
    forms: frozenset[str]
    start: int
    end: int
    is_article: bool


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """One character without case, accent and typographic variety; '' for one that leaves no trace."""
    if character in _APOSTROPHES:
        return "'"
    if character == "&":
        return " and "
    if character == "\u2212":
        return "-"
    folded = unicodedata.normalize("NFKD", character).casefold()
    folded = "".join(_LETTERS_WITHOUT_DECOMPOSITION.get(c, c) for c in folded if not _is_mark(c))
    return unicodedata.normalize("NFC", folded)


def _is_mark(character: str) -> bool:
    """Accents, Hebrew and Arabic vowel points, and characters of no width."""
    is_accent = (
        "\u0300" <= character <= "\u036f" or "\u0591" <= character <= "\u05bd" or "\u064b" <= character <= "\u0652"
    )
    return is_accent or unicodedata.category(character) == "Cf"


def words(text: str) -> list[Word]:
    """The words of a text in order, with their places in it."""
    pieces = [(_fold(character), i) for i, character in enumerate(text)]
    folded = "".join(piece for piece, _ in pieces)
    places = [i for piece, i in pieces for _ in piece]
    found: list[Word] = []
    for match in _WORD.finditer(folded):
        start, end = places[match.start()], places[match.end() - 1] + 1
        while end < len(text) and _is_mark(text[end]):
            end += 1
        is_article = match.group() in _ARTICLES and not (text[start:end] == "A" and found)
        found.append(Word(*_forms(match.group()), start, end, is_article))
    return found


def _forms(token: str) -> tuple[str, frozenset[str]]:
    """A word without its inner punctuation, and what else counts as the same: without 's or l', digits and name."""
    form = re.sub(r"(?<=\D)[.\s]+|,|'", "", token)
    forms = {form, _DIGITS_OF.get(form, form)}
    if token.endswith("'s"):
        forms.add(form[:-1])
    if token[:2] in ("l'", "d'"):
        forms.add(form[1:])
    return form, frozenset(forms)


def _without_articles(found: Sequence[Word]) -> list[Word]:
    """An article counts only where a word follows it: the A of "Vitamin A" and of a lone "A" stays."""
    return [word for i, word in enumerate(found) if not word.is_article or i == len(found) - 1]


def normalise(text: str) -> str:
    """Words joined by spaces: no case, accents, punctuation or articles; "1,234" is 1234, "U.S." is us, "&" is and.

    Decimal points, minus signs and the + and # of "C++" and "C#" stay. The aim is SQuAD's `normalize_answer`
    (Rajpurkar et al. 2016, evaluation script), which also turns 3.14 into 314, C++ into c and Vitamin A into Vitamin.
    """
    return " ".join(word.form for word in _without_articles(words(text)))


def find_alias(answer: str, references: Sequence[str] | str) -> tuple[int, int] | None:
    """Where the first reference stands in the answer, as whole words; of those that begin there, the longest.

    A reference of nothing but articles ("A", "The The") must be the whole answer. One without any word is skipped.

    Returns:
        [start, end) in characters of `answer`, or None.

    Raises:
        InputError: no reference was given.
    """
    full = words(answer)
    plain = _without_articles(full)
    spans = [span for reference in _as_references(references) if (span := _find(plain, full, _words_of(reference)))]
    return min(spans, key=lambda span: (span[0], -span[1]), default=None)


@lru_cache(maxsize=65536)
def _words_of(reference: str) -> tuple[Word, ...]:
    return tuple(words(reference))


def _find(plain: list[Word], full: list[Word], alias: tuple[Word, ...]) -> tuple[int, int] | None:
    if alias and all(word.form in _ARTICLES for word in alias):
        return (full[0].start, full[-1].end) if [w.form for w in full] == [w.form for w in alias] else None
    wanted = _without_articles(alias)
    if not wanted:
        return None
    for i in range(len(plain) - len(wanted) + 1):
        if all(not a.forms.isdisjoint(b.forms) for a, b in zip(wanted, plain[i:], strict=False)):
            return plain[i].start, plain[i + len(wanted) - 1].end
    return None


def alias_match(answer: str, references: Sequence[str] | str) -> bool:
    """Whether a reference stands in the answer as whole words (see `find_alias`).

    Raises:
        InputError: no reference was given.
    """
    return find_alias(answer, references) is not None


def substring_match(answer: str, references: Sequence[str] | str) -> bool:
    """Whether a normalised reference occurs anywhere in the normalised answer, inside words too.

    The `substring` grader of calibration-tuning, but without case. Safe for long references only: "a" is in any text.

    Raises:
        InputError: no reference was given.
    """
    text = normalise(answer)
    return any(reference and reference in text for reference in map(normalise, _as_references(references)))


def exact_match(answer: str, references: Sequence[str] | str) -> bool:
    """Whether the normalised answer is one of the normalised references (SQuAD's exact match).

    Raises:
        InputError: no reference was given.
    """
    return normalise(answer) in {normalise(reference) for reference in _as_references(references)} - {""}


def token_f1(answer: str, references: Sequence[str] | str) -> float:
    """Harmonic mean of word precision and recall against the reference that fits best (SQuAD's F1), in [0, 1].

    Raises:
        InputError: no reference was given.
    """
    return max(_f1(normalise(answer).split(), normalise(ref).split()) for ref in _as_references(references))


def _f1(given: list[str], wanted: list[str]) -> float:
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def letter_of(answer: str, num_choices: int) -> str | None:
    """The upper-case letter that an answer to a multiple-choice question chose; None when it names none, or several.

    Read in this order: the letter alone ("b", "(B)."), named ("the answer is B"), marked ("B) Lyon", "(B) is right").
    A lower-case "a" before a word is an article, never a choice.

    Raises:
        InputError: `num_choices` is not between 1 and 26.
    """
    if not 1 <= num_choices <= 26:
        raise InputError(f"A question has between 1 and 26 choices; got {num_choices}.")
    alone = _CHOICE_ALONE.fullmatch(answer)
    if alone:
        return _allowed({alone.group(1)}, num_choices)
    named = {letter for groups in _CHOICE_NAMED.findall(answer) for letter in groups if letter}
    return _allowed(named, num_choices) if named else _allowed(set(_CHOICE_MARKED.findall(answer)), num_choices)


def _allowed(letters: set[str], num_choices: int) -> str | None:
    chosen = {letter.upper() for letter in letters} & {chr(ord("A") + i) for i in range(num_choices)}
    return chosen.pop() if len(chosen) == 1 else None


def _as_references(references: Sequence[str] | str) -> Sequence[str]:
    found = [references] if isinstance(references, str) else list(references)
    if not found:
        raise InputError("An answer cannot be graded without a reference; give at least one string.")
    return found
