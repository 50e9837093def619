"""A combination is the weighted sum of what its members say, however late they say it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.estimators.test_probe import make_probe
from tests.tiny import tiny_model
from uqchat.errors import UqchatError
from uqchat.estimators.base import AnswerContext, Estimator, FollowUp
from uqchat.estimators.combination import Combination, Formula, Member
from uqchat.estimators.entropy import Entropy
from uqchat.estimators.max_prob import MaxProb
from uqchat.estimators.word_pool import own_words
from uqchat.language_model import LanguageModel, from_loaded
from uqchat.origin import ArtifactError, Origin, origin_of
from uqchat.scoring import Scorer
from uqchat.types import Alternative, Message, Risk, ScoredToken, Signals, Summary, TokenStep

MEMBERS = (Member("entropy"), Member("max_prob"), Member("entropy", "max"))


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A tiny one."""
    return from_loaded(tiny_model())


def steps() -> list[TokenStep]:
    """Three tokens and the end token with easy numbers."""
    made = []
    for index, (logprob, entropy) in enumerate([(-0.5, 1.0), (-1.0, 3.0), (-0.3, 0.5), (-0.1, 9.0)]):
        is_end = index == 3
        text = "" if is_end else "ab "
        span = (9, 9) if is_end else (3 * index, 3 * index + 3)
        top = (Alternative(1, "x", logprob),)
        made.append(TokenStep(index, index, text, span, logprob, entropy, top, is_end=is_end))
    return made


def combined(has_token: bool = True, members: Sequence[Member] = MEMBERS, **estimators: Estimator) -> Combination:
    """A combination with weights 1, 2, 3 and bias -1."""
    known = estimators or {"entropy": Entropy(), "max_prob": MaxProb()}
    formula = Formula((1.0, 2.0, 3.0)[: len(members)], -1.0)
    return Combination(members, known, formula, formula if has_token else None, Origin())


def test_the_answers_score_is_the_weighted_sum_of_the_members() -> None:
    scorer = Scorer([combined()])
    for step in steps():
        scorer.push(step)
    scorer.finish()
    risks, summaries = scorer.answer_scores()
    # By hand, the end token left out: mean entropy 1.5, mean -log p 0.6, largest entropy 3.
    expected = -1 + 1 * 1.5 + 2 * 0.6 + 3 * 3.0
    assert risks["combination"].raw == summaries["combination"].mean == pytest.approx(expected)
    # Token 0: entropy 1 counts twice (the largest of a token's scores is its own), -log p is 0.5.
    assert scorer.tokens[0].risks["combination"].raw == pytest.approx(-1 + 1 + 1 + 3)


def test_without_a_formula_for_tokens_the_answers_risk_stands_on_all_of_them() -> None:
    one = combined(has_token=False)
    assert one.level == "answer"
    scorer = Scorer([one])
    for step in steps():
        assert "combination" not in scorer.push(step)[-1].risks
    scorer.finish()
    raws = [token.risks["combination"].raw for token in scorer.tokens[:3]]
    assert raws == pytest.approx([-1 + 1.5 + 1.2 + 9.0] * 3)


class Late(Estimator):
    """Scores the token before the newest, and the last one when the answer is whole."""

    name, label, level, unit, value_map = "late", "Late", "token", "", ""
    needs = Signals()

    def new_state(self) -> list[int]:
        """Tokens to score."""
        return []

    def score_token(self, step: TokenStep | ScoredToken, state: list[int]) -> dict[int, Risk]:
        """One token late."""
        state.append(step.index)
        return {step.index - 1: Risk(0.5, 10.0 + step.index - 1)} if step.index else {}

    def finish(self, state: list[int]) -> dict[int, Risk]:
        """The last one."""
        return {state[-1]: Risk(0.5, 10.0 + state[-1])}


def test_a_token_is_scored_when_its_last_member_has_scored_it() -> None:
    members = (Member("entropy"), Member("late"))
    scorer = Scorer([combined(members=members, entropy=Entropy(), late=Late())])
    first, second = steps()[:2]
    assert "combination" not in scorer.push(first)[-1].risks
    revised = scorer.push(second)
    assert [token.index for token in revised] == [0, 1] and "combination" not in revised[1].risks
    assert revised[0].risks["combination"].raw == pytest.approx(-1 + 1.0 + 2 * 10.0)
    scorer.finish()
    assert scorer.tokens[1].risks["combination"].raw == pytest.approx(-1 + 3.0 + 2 * 11.0)


class Asking(Estimator):
    """Asks the model again and says what comes back."""

    name, label, level, unit, value_map = "asking", "Asking", "answer", "", ""
    needs = Signals()
    reads_on = True

    def new_state(self) -> list[float]:
        """Replies."""
        return []

    def follow_ups(self, context: AnswerContext, tokens: Sequence[ScoredToken], state: list[float]) -> list[FollowUp]:
        """One."""
        return [FollowUp((1, 2))]

    def score_token(self, step: TokenStep | ScoredToken, state: list[float]) -> dict[int, Risk]:
        """Nothing yet."""
        return {}

    def take_replies(self, replies: list[TokenStep], state: list[float]) -> dict[int, Risk]:
        """Keeps them."""
        state += [-reply.logprob for reply in replies]
        return {}

    def score_answer(self, tokens: Sequence[ScoredToken], state: list[float]) -> tuple[Risk, Summary] | None:
        """The reply."""
        return (Risk(0.5, state[0]), Summary(0, 0, 0)) if state else None


def test_members_get_the_replies_to_their_own_follow_ups() -> None:
    members = (Member("asking"), Member("entropy"), Member("again"))
    one = combined(has_token=False, members=members, asking=Asking(), entropy=Entropy(), again=Asking())
    state = one.new_state()
    for step in steps():
        one.score_token(step, state)
    assert one.finish(state) == {} and one.score_answer([], state) is None  # nothing is known before the replies
    asked = one.follow_ups(None, [], state)
    replies = [TokenStep(i, 0, "", (0, 0), logprob, None) for i, logprob in enumerate((-4.0, -7.0))]
    assert len(asked) == 2
    found = one.take_replies(replies, state)
    expected = -1 + 4.0 + 2 * 1.5 + 3 * 7.0
    assert {i: risk.raw for i, risk in found.items()} == pytest.approx(dict.fromkeys(range(3), expected))
    assert one.score_answer([], state)[0].raw == pytest.approx(expected)


def test_a_saved_combination_opens_its_members_and_scores_the_same(model: LanguageModel, tmp_path: Path) -> None:
    one = combined()
    one.info = origin_of(model, training_data="made")
    one.save(tmp_path / "mix")
    again = Combination.from_folder(tmp_path / "mix", model, "mix")
    assert (again.name, again.level, again.needs) == ("mix", "token", one.needs)
    scorers = [Scorer([one]), Scorer([again])]
    for scorer in scorers:
        for step in steps():
            scorer.push(step)
        scorer.finish()
    assert scorers[0].answer_scores()[0]["combination"] == scorers[1].answer_scores()[0]["mix"]
    assert "+3 max of entropy" in (tmp_path / "mix" / "README.md").read_text()


def test_members_are_folders_beside_the_combination(model: LanguageModel, tmp_path: Path) -> None:
    make_probe(model).save(tmp_path / "probe")
    members = (Member("entropy"), Member("../probe"))
    one = Combination(
        members,
        {"entropy": Entropy(), "../probe": make_probe(model)},
        Formula((1.0, 1.0), 0.0),
        None,
        origin_of(model),
    )
    one.save(tmp_path / "mix")
    again = Combination.from_folder(tmp_path / "mix", model, "mix")
    assert set(again.needs.hidden_layers) == {0, 1, 2}
    answer = model.score("A question?", "Some answer", estimators=[str(tmp_path / "mix")])
    parts = model.score("A question?", "Some answer", estimators=["entropy", str(tmp_path / "probe")])
    expected = sum(risk.raw for risk in parts.risks.values())
    assert answer.risks[str(tmp_path / "mix")].raw == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "at least one member"),
        ([Member("../nowhere")], "nowhere"),
        ([Member("../mix")], "is a combination itself"),
    ],
)
def test_members_that_cannot_be_are_refused(
    model: LanguageModel, tmp_path: Path, members: list[Member], message: str
) -> None:
    one = combined()
    one.info = origin_of(model)
    one.save(tmp_path / "mix")
    formula = Formula((1.0,) * len(members), 0.0)
    Combination(members, {}, formula, None, origin_of(model)).save(tmp_path / "bad")
    with pytest.raises(UqchatError, match=message):
        Combination.from_folder(tmp_path / "bad", model, "bad")


def test_an_unknown_statistic_is_refused() -> None:
    with pytest.raises(ArtifactError, match="raw or max"):
        Member("entropy", "median")


def test_a_combination_reads_on_only_where_a_member_does() -> None:
    assert combined(False, (Member("asking"),), asking=Asking()).reads_on
    assert not combined().reads_on


def test_a_word_is_as_risky_as_its_riskiest_token_as_soon_as_that_is_known() -> None:
    texts = ["The", " Bish", "ke", "q", " ", "1", "2", "."]
    entropies = [0.5, 1.0, 3.0, 2.0, 0.1, 0.2, 0.4, 5.0]
    formula = Formula((1.0,), 0.0)
    one = Combination((Member("entropy"),), {"entropy": Entropy()}, formula, formula, Origin(), is_by_word=True)
    scorer, seen, start = Scorer([one]), [], 0
    for index, (text, entropy) in enumerate(zip(texts, entropies, strict=True)):
        span = (start, start + len(text))
        seen.append([t.index for t in scorer.push(TokenStep(index, index, text, span, -1.0, entropy, ()))])
        start = span[1]
    scorer.finish()
    # By hand: Bishkeq is three tokens, 12 two; a space and the full stop stand alone.
    expected = [0.5, 3.0, 3.0, 3.0, 0.1, 0.4, 0.4, 5.0]
    assert [token.risks["combination"].raw for token in scorer.tokens] == expected
    assert seen == [[0], [1], [1, 2], [3], [4], [5], [5, 6], [7]]
    # The answer's own score is of the tokens as they are.
    assert scorer.answer_scores()[0]["combination"].raw == pytest.approx(sum(entropies) / 8)


def scored_by_word(
    question: str, texts: Sequence[str], own: float = 10.0
) -> tuple[list[float], list[dict[int, float]]]:
    """Raw scores of tokens whose entropy is 1, in the end and after each token, and after the last of them."""
    formula = Formula((1.0,), 0.0)
    members = (Member("entropy"),)
    one = Combination(members, {"entropy": Entropy()}, formula, formula, Origin(), is_by_word=True, own=own)
    scorer = Scorer([one], AnswerContext((), (Message("user", question),), None, None))
    seen, start = [], 0
    for index, text in enumerate(texts):
        span = (start, start := start + len(text))
        pushed = scorer.push(TokenStep(index, index, text, span, -1.0, 1.0, ()))
        seen.append({token.index: token.risks["combination"].raw for token in pushed})
    seen.append({token.index: token.risks["combination"].raw for token in scorer.finish()})
    return [token.risks["combination"].raw for token in scorer.tokens], seen


def test_the_answers_own_words_are_scored_apart_from_those_that_only_say_the_question_again() -> None:
    texts = ["The", " capital", " of", " Kyr", "gyz", "stan", " is", " Bish", "ke", "q", "."]
    scores, seen = scored_by_word("What is the capital of Kyrgyzstan?", texts)
    assert scores == [1, 1, 1, 1, 1, 1, 1, 11, 11, 11, 1]
    # A word that may still become one of the question's is not tinted meanwhile; one that no longer can is at once.
    assert seen[3] == {3: 1.0} and seen[7] == {7: 11.0}


def test_a_word_of_the_question_that_a_sentence_says_twice_is_the_answers_own_the_second_time() -> None:
    texts = ["The", " capital", " of", " Chile", " is", " Chile", ".", " Chile", " is", " in", " Asia", "."]
    scores, _ = scored_by_word("What is the capital of Chile? Where is Chile?", texts)
    assert scores == [1, 1, 1, 1, 1, 11, 1, 1, 1, 1, 11, 1]
    texts = ["1", "3", " minus", " ", "1", "0", " is", " ", "1", "3", "."]
    assert scored_by_word("What is 13 minus 10?", texts)[0] == [1, 1, 1, 1, 1, 1, 1, 1, 11, 11, 1]


def test_the_last_word_of_an_answer_that_ends_in_it_is_judged_when_the_answer_is_whole() -> None:
    scores, seen = scored_by_word("Who rules the Netherlands?", ["The", " Net"])
    assert scores == [1, 11] and seen == [{0: 1.0}, {1: 1.0}, {1: 11.0}]


def test_function_words_say_nothing_unless_a_capital_makes_them_names() -> None:
    assert scored_by_word("Which vitamin?", ["It", " is", " vitamin", " A", "."])[0] == [1, 1, 1, 11, 1]
    assert own_words("Which vitamin?", {0: "It", 1: " is", 4: " vitamin", 5: " A", 6: ""}) == {
        0: False,
        1: False,
        4: False,
        5: True,
        6: False,
    }


def test_what_own_words_add_is_kept_in_the_folder(tmp_path: Path, model: LanguageModel) -> None:
    formula = Formula((1.0,), 0.0)
    members = (Member("entropy"),)
    one = Combination(members, {}, formula, formula, origin_of(model), is_by_word=True, own=2.5)
    one.save(tmp_path / "mix")
    assert Combination.from_folder(tmp_path / "mix", model, "mix").own == 2.5
