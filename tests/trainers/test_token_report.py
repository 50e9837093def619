"""Token figures by hand: which facts are wrong, where the riskiest token stands, how much restating words burn."""

from __future__ import annotations

import pytest

from tests.trainers.made_answers import make_row
from trainers.answers import AnswerRow, Fact
from trainers.token_report import figures, judge, markdown
from uqchat.errors import InputError
from uqchat.types import Risk, ScoredToken

WORDS = ["The", " capital", " of", " Mali", " is", " Bamako", ".", " The", " capital", " of", " Peru", " is", " Quito"]


def answer() -> AnswerRow:
    """Bamako is right, Quito is wrong."""
    text, spans = "".join(WORDS), []
    for word in WORDS:
        start = spans[-1][1] if spans else 0
        spans.append((start, start + len(word)))
    facts = (Fact("Mali", ("Bamako",)), Fact("Peru", ("Lima",)))
    question = "What is the capital of Mali? What is the capital of Peru?"
    ids = tuple(range(len(WORDS)))
    return make_row(question=question, text=text, spans=tuple(spans), answer_ids=ids, facts=facts, references=())


def scored(row: AnswerRow, raws: dict[str, float]) -> list[ScoredToken]:
    """Tokens whose risk is that of their word, 0 where it is not named."""
    return [
        ScoredToken(
            index=i, token_id=i, text=word, span=row.spans[i], logprob=-1.0, entropy=1.0, alternatives=(),
            risks={"made": Risk(0.5, raws.get(word.strip(), 0.0))},
        )
        for i, word in enumerate(WORDS)
    ]  # fmt: skip


def test_a_right_and_a_wrong_fact_are_compared_and_the_riskiest_token_is_found() -> None:
    row = answer()
    found = judge(row, scored(row, {"Quito": 3.0, "Bamako": 1.0, "Peru": 2.0}), "made")
    assert (found.within, found.is_reddest_wrong, found.wrong) == (1.0, True, [3.0])
    # "capital" twice, Mali and Peru restate; function words do not count.
    assert sorted(found.restating) == [0.0, 0.0, 0.0, 2.0]
    other = judge(row, scored(row, {"Quito": 1.0, "Bamako": 2.0, "Peru": 3.0}), "made")
    assert (other.within, other.is_reddest_wrong) == (0.0, False)
    both = figures([found, other])
    assert both.within.value == 0.5 and both.reddest.value == 0.5 and (both.num_mixed, both.num_wrong) == (2, 2)
    # The median wrong token has 2; of eight restating words only Peru with 3 is above.
    assert both.restating == pytest.approx(1 / 8) and both.num_restating == 8
    assert "| made | 0.500" in markdown({"made": both})


def test_answers_without_both_kinds_of_facts_are_told() -> None:
    row = answer()
    right = make_row(**{name: getattr(row, name) for name in ("question", "text", "spans", "answer_ids")},
                     facts=(Fact("Mali", ("Bamako",)),), references=())  # fmt: skip
    found = judge(right, scored(right, {}), "made")
    assert found.within is None and found.is_reddest_wrong is None
    with pytest.raises(InputError, match="--several"):
        figures([found])
