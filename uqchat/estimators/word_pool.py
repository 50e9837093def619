"""A word is as risky as its riskiest token: what one token reveals holds for the word that it is a part of.

Knows texts of tokens and raw scores; where a word ends, `uqchat.grading.words` says. In scripts without spaces every
character is a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uqchat.grading import words


@dataclass
class WordPool:
    """The words of one answer so far, with the scores of their tokens, by token index."""

    _word_of: dict[int, int] = field(default_factory=dict)
    _members: list[list[int]] = field(default_factory=list)
    _newest: str = ""  # text of the last word
    _raws: dict[int, float] = field(default_factory=dict)
    _pooled: dict[int, float] = field(default_factory=dict)

    def add(self, index: int, text: str) -> None:
        """Take the next token: it goes on with the last word, or begins another."""
        joined = self._newest + text
        place = len(self._newest)
        if self._members and any(word.start < place < word.end for word in words(joined)):
            self._members[-1].append(index)
            self._newest = joined
        else:
            self._members.append([index])
            self._newest = text
        self._word_of[index] = len(self._members) - 1

    def update(self, raws: Mapping[int, float]) -> dict[int, float]:
        """Scores of tokens that were added; gives every token's whose word's score is new or changed."""
        self._raws.update(raws)
        changed: dict[int, float] = {}
        for number in sorted({self._word_of[index] for index in raws}):
            scored = [index for index in self._members[number] if index in self._raws]
            top = max(self._raws[index] for index in scored)
            changed |= {index: top for index in scored if self._pooled.get(index) != top}
        self._pooled.update(changed)
        return changed
