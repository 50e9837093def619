"""A word is as risky as its riskiest token: what one token reveals holds for the word that it is a part of.

Knows texts of tokens and raw scores; where a word ends, `uqchat.grading.words` says, and `uqchat.restating` which words
are the answer's own. In scripts without spaces every character is a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from uqchat.grading import words
from uqchat.restating import SENTENCE_ENDS, AskedWords, asked_words, says_something


@dataclass
class PooledWord:
    """Tokens of one word, or one token that is none, and what stands before it in its sentence."""

    members: list[int]
    text: str
    before: str


@dataclass
class WordPool:
    """The words of one answer so far, with the scores of their tokens, by token index.

    Args:
        own: is added to the score of words that are the answer's own: see `uqchat.restating`.
    """

    own: float = 0.0
    _asked: AskedWords = AskedWords()
    _words: list[PooledWord] = field(default_factory=list)
    _word_of: dict[int, int] = field(default_factory=dict)
    _raws: dict[int, float] = field(default_factory=dict)
    _pooled: dict[int, float] = field(default_factory=dict)
    _is_closed: bool = False

    def ask(self, question: str) -> None:
        """What is answered, once before the first token."""
        self._asked = asked_words(question) if self.own else AskedWords()

    def add(self, index: int, text: str) -> None:
        """Take the next token: it goes on with the last word, or begins another."""
        last = self._words[-1] if self._words else PooledWord([], "", "")
        joined, place = last.text + text, len(last.text)
        if last.members and any(word.start < place < word.end for word in words(joined)):
            last.members.append(index)
            last.text = joined
        else:
            self._words.append(PooledWord([index], text, SENTENCE_ENDS.split(last.before + last.text)[-1]))
        self._word_of[index] = len(self._words) - 1

    def update(self, raws: Mapping[int, float]) -> dict[int, float]:
        """Scores of tokens that were added; gives every token's whose word's score is new or changed.

        A new token shows where the word before it ends, so that one is looked at again.
        """
        self._raws.update(raws)
        numbers = {self._word_of[index] for index in raws}
        return self._changed(numbers | ({number - 1 for number in numbers if number} if self.own else set()))

    def close(self) -> dict[int, float]:
        """The answer is whole, so its last word is too; gives tokens whose score that changes."""
        self._is_closed = True
        return self._changed([len(self._words) - 1] if self._words else [])

    def _changed(self, numbers: Iterable[int]) -> dict[int, float]:
        changed: dict[int, float] = {}
        for number in sorted(numbers):
            scored = [index for index in self._words[number].members if index in self._raws]
            if scored:
                top = max(self._raws[index] for index in scored) + self._bonus(number)
                changed |= {index: top for index in scored if self._pooled.get(index) != top}
        self._pooled.update(changed)
        return changed

    def _bonus(self, number: int) -> float:
        if not self.own:
            return 0.0
        word, is_open = self._words[number], number == len(self._words) - 1 and not self._is_closed
        return self.own if says_something(word.text, word.before, self._asked, is_open) else 0.0


def own_words(question: str, tokens: Mapping[int, str]) -> dict[int, bool]:
    """Of each token of a whole answer whether its word is the answer's own.

    Args:
        tokens: their texts by index, in order.
    """
    pool, found = WordPool(own=1.0), dict[int, float]()
    pool.ask(question)
    for index, text in tokens.items():
        pool.add(index, text)
        found |= pool.update({index: 0.0})
    return {index: score > 0 for index, score in (found | pool.close()).items()}
