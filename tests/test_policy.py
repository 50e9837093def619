"""Policies: what they make of answers, what they never decline, how they are kept, and what they do while answering."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import ScriptedLanguageModel, scored_token, scored_tokens, scripted_answer
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.policy import ACTIONS, Guarantee, Origin, Policy, PolicyStore, parse_policy
from uqchat.policy_judge import judge
from uqchat.policy_run import MIN_TOKENS, PolicyRun
from uqchat.types import Answer, Risk, ScoredToken


def policy(threshold: float = 0.5, action: str = "mark", **changes: Any) -> Policy:
    """A policy on entropy whose scope is not known."""
    return Policy(name="easy", estimator="entropy", threshold=threshold, action=action, **changes)


def tokens_of_risk(text: str, risk: float) -> tuple[ScoredToken, ...]:
    """An answer all of whose tokens have this risk."""
    return tuple(replace(token, risks={"entropy": Risk(risk, risk)}) for token in scored_tokens(text))


def answer_of_risk(risk: float, calibration: str | None = None, **changes: Any) -> Answer:
    """An answer of four words with this risk."""
    answer = scripted_answer(tokens_of_risk("Paris is the capital.", risk), ["entropy"])
    return replace(answer, risks={"entropy": Risk(risk, risk, calibration)}, **changes)


@pytest.mark.parametrize(("risk", "outcome"), [(0.5, "answered"), (0.500001, "declined"), (0.0, "answered")])
def test_an_answer_passes_if_its_risk_is_at_most_the_threshold(risk: float, outcome: str) -> None:
    decision = judge(policy(0.5, "decline"), answer_of_risk(risk))
    assert (decision.outcome, decision.risk, decision.threshold) == (outcome, risk, 0.5)
    assert "0.50" in decision.reason


def test_a_declined_answer_says_the_number_and_calls_it_a_probability_only_when_it_is_one() -> None:
    scoped = policy(0.3, "decline", calibrated_on=Origin(scope="s"))
    assert "The risk 0.71 is above the 0.30" in judge(policy(0.3, "decline"), answer_of_risk(0.71)).reason
    assert "probability of error, 0.71," in judge(scoped, answer_of_risk(0.71, "s")).reason


@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "hand_over"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (answer_of_risk(0.9, outside_scope={"entropy": "the question asks for no fact."}), "asks for no fact"),
        (answer_of_risk(0.9, "other scope"), "another scale"),
        (answer_of_risk(0.9, None), "another scale"),
        (answer_of_risk(0.9, "s", model="another"), "made for scripted"),
        (replace(answer_of_risk(0.9, "s"), risks={}), "no risk by entropy"),
        (answer_of_risk(0.9, "s", failures={"entropy": "too long."}), "too long"),
        (answer_of_risk(0.9, "s", finish_reason="cancelled"), "not complete"),
    ],
)
def test_what_it_cannot_judge_is_never_declined_and_says_so(action: str, answer: Answer, words: str) -> None:
    decision = judge(policy(0.1, action, calibrated_on=Origin(model="scripted", scope="s")), answer)
    assert decision.outcome == "cannot_judge" and not decision.is_hidden
    assert decision.reason.startswith("Cannot judge") and words in decision.reason


def test_only_the_risky_sentences_are_left_out() -> None:
    good, bad = tokens_of_risk("Paris is big.", 0.1)[:-1], tokens_of_risk(" Lyon has wings.", 0.9)[:-1]
    moved = [replace(t, index=t.index + 3, span=(t.span[0] + 13, t.span[1] + 13)) for t in bad]
    answer = scripted_answer([*good, *moved], ["entropy"])
    decision = judge(policy(0.4, "trim"), answer)
    assert decision.outcome == "trimmed"
    assert [answer.text[a:b].strip() for a, b in decision.hidden] == ["Lyon has wings."]


def test_an_answer_without_a_safe_sentence_is_declined() -> None:
    assert judge(policy(0.4, "trim"), answer_of_risk(0.9)).outcome == "declined"


def test_a_given_text_is_scored_and_judged() -> None:
    model = ScriptedLanguageModel()
    decision = PolicyRun(model, policy(0.0, "decline")).decide("What?", "Lyon is the capital.")
    assert decision.outcome == "declined" and model.scored[0][1] == "Lyon is the capital."
    assert model.requests == []


def test_declined_and_retried_answers_are_not_seen_before_they_are_judged() -> None:
    for action in ("decline", "retry"):
        stop = threading.Event()
        model = ScriptedLanguageModel("Paris", hold_after=1)
        stream = PolicyRun(model, policy(1.0, action)).stream("What?", stop=stop)
        threading.Timer(0.05, model.release).start()
        assert next(stream).text == "Paris" and model.running == 0


@pytest.mark.parametrize("action", ["decline", "trim"])
def test_no_token_of_what_is_not_to_be_seen_is_handed_out(action: str) -> None:
    stream = PolicyRun(ScriptedLanguageModel(tokens_of_risk("Lyon.", 0.9)), policy(0.1, action)).stream("What?")
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value.text == "Lyon." and end.value.value.decision.outcome == "declined"


def test_retrying_ends_with_the_first_answer_below_the_threshold() -> None:
    scripts = [
        tokens_of_risk(text, risk) for text, risk in (("one a b", 0.9), ("two", 0.6), ("three", 0.2), ("four", 0))
    ]
    model = ScriptedLanguageModel(*scripts)
    answer = PolicyRun(model, policy(0.3, "retry", tries=4, temperature=0.7)).answer("What?", ("margin",)[:0])
    assert (answer.text, answer.decision.outcome, answer.decision.tries) == ("three", "answered", 3)
    assert answer.decision.extra_tokens == len(scripts[0]) + len(scripts[1])
    assert [(r.generation.temperature, r.generation.seed) for r in model.requests] == [(0, 0), (0.7, 1), (0.7, 2)]


def test_retrying_in_vain_gives_the_least_risky_answer_with_a_mark_and_its_cost() -> None:
    scripts = [tokens_of_risk(text, risk) for text, risk in (("one", 0.9), ("two", 0.6), ("three", 0.7))]
    answer = PolicyRun(ScriptedLanguageModel(*scripts), policy(0.3, "retry", tries=3)).answer("What?")
    assert (answer.text, answer.decision.outcome, answer.decision.tries) == ("two", "marked", 3)
    assert "best of 3 answers; the others took 4 tokens more" in answer.decision.reason


def test_an_answer_that_looks_wrong_is_stopped_after_a_few_tokens_and_a_sure_one_is_not() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    stopped = PolicyRun(ScriptedLanguageModel(tokens_of_risk(text, 0.9)), policy(0.3, "stop_early")).answer("What?")
    assert stopped.decision.outcome == "stopped" and len(stopped.tokens) == MIN_TOKENS
    whole = PolicyRun(ScriptedLanguageModel(tokens_of_risk(text, 0.2)), policy(0.3, "stop_early")).answer("What?")
    assert whole.decision.outcome == "answered" and whole.text == text


@pytest.mark.parametrize(("raw_threshold", "is_stopped"), [(-1.0, True), (0.95, False), (None, False)])
def test_parts_are_judged_in_the_scores_own_unit_where_the_policy_has_it(
    raw_threshold: float | None, is_stopped: bool
) -> None:
    """Tokens of value .2 and raw .2: below the threshold .3 of whole answers, above a raw threshold of -1."""
    text = "One two three four five six. Seven eight nine ten eleven twelve."
    changes = {"raw_threshold": raw_threshold}
    model = ScriptedLanguageModel(tokens_of_risk(text, 0.2))
    stopped = PolicyRun(model, policy(0.3, "stop_early", **changes)).answer("What?")
    assert (stopped.decision.outcome == "stopped") is is_stopped
    tokens = tokens_of_risk(text, 0.2)
    answer = replace(scripted_answer(tokens, ["entropy"]), risks={"entropy": Risk(0.9, 0.9)})
    trimmed = judge(policy(0.3, "trim", **changes), answer)
    assert trimmed.outcome == ("declined" if is_stopped else "marked")  # no sentence is safe, or none is risky


def test_outside_the_scope_nothing_is_stopped_early() -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    scoped = policy(0.3, "stop_early", calibrated_on=Origin(scope="s"))
    answer = PolicyRun(ScriptedLanguageModel(tokens_of_risk(text, 0.9)), scoped).answer("What?")
    assert answer.text == text and answer.decision.outcome == "cannot_judge"


def test_a_risky_answer_is_handed_to_the_second_model_and_a_safe_one_is_not() -> None:
    handed = policy(0.3, "hand_over", second_model="big")
    opened: list[str] = []

    def open_second(name: str) -> ScriptedLanguageModel:
        opened.append(name)
        return ScriptedLanguageModel("From the second.")

    risky = PolicyRun(ScriptedLanguageModel(tokens_of_risk("x", 0.9)), handed, open_second).answer("What?")
    assert (risky.text, risky.decision.answered_by, opened) == ("From the second.", "big", ["big"])
    safe = PolicyRun(ScriptedLanguageModel(tokens_of_risk("x", 0.1)), handed, open_second).answer("What?")
    assert (safe.text, safe.decision.outcome, opened) == ("x", "answered", ["big"])
    alone = PolicyRun(ScriptedLanguageModel(tokens_of_risk("x", 0.9)), handed).answer("What?")
    assert alone.text == "x" and "cannot be asked here" in alone.decision.reason


def test_the_policys_estimator_is_scored_whatever_was_asked_for() -> None:
    model = ScriptedLanguageModel([scored_token(0, "Paris")])
    answer = PolicyRun(model, policy(1.0)).answer("What?", ("margin",), GenerationConfig(max_new_tokens=4))
    assert set(answer.risks) == {"margin", "entropy"} and answer.decision.outcome == "answered"
    assert json.loads(json.dumps(answer.to_json()))["decision"]["policy"] == "easy"


def test_versions_are_kept_and_never_change(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path / "policies")
    first, second = store.save(policy(0.5)), store.save(policy(0.25, guarantee=Guarantee(max_error=0.3, delta=0.1)))
    assert (first.ref, second.ref) == ("easy@1", "easy@2")
    assert store.load("easy").threshold == 0.25 and store.load("easy@1") == first
    assert [found.ref for found in store.newest()] == ["easy@2"]
    assert "At most 30% of the answered questions are wrong, with confidence 90%" in second.basis
    assert "promises nothing" in first.basis


def test_two_who_save_at_once_get_two_versions(tmp_path: Path) -> None:
    store, saved = PolicyStore(tmp_path), []
    threads = [threading.Thread(target=lambda: saved.append(store.save(policy()).version)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(saved) == list(range(1, 9))


@pytest.mark.parametrize("ref", ["gone", "easy@2", "easy@x", "../easy", "", "easy/1"])
def test_an_unknown_policy_is_explained(tmp_path: Path, ref: str) -> None:
    store = PolicyStore(tmp_path / "policies")
    store.save(policy())
    with pytest.raises(InputError, match=r"There is no policy .* Known: easy@1"):
        store.load(ref)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"name": "../x"}, "name"),
        ({"action": "explode"}, "action"),
        ({"action": "hand_over"}, "second_model"),
        ({"surprise": 1}, "surprise"),
        ({"guarantee": {"max_error": 0.1, "delta": 0}}, "guarantee.delta"),
    ],
)
def test_a_policy_file_is_checked(change: dict[str, Any], words: str) -> None:
    text = json.dumps({"name": "easy", "estimator": "entropy", "threshold": 0.5, **change})
    with pytest.raises(InputError, match=words):
        parse_policy(text, "my.json")
