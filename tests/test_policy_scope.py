"""A policy from the records that ship, asked prompts that ask for no fact: it says that it cannot judge them."""

from __future__ import annotations

import json

import pytest

from uqchat.config import GenerationConfig
from uqchat.language_model import LanguageModel
from uqchat.paths import ASSETS, ROOT
from uqchat.policy import Origin, Policy
from uqchat.policy_judge import judge
from uqchat.records import read_records
from uqchat.records_split import calibration_part
from uqchat.selective_guarantee import guaranteed_threshold
from uqchat.types import Message


def certified_policy(max_error: float = 0.3) -> Policy:
    """Declines above the threshold that the shipped records certify for the score which lets most be answered."""
    records = read_records(ASSETS / "records" / "easy_facts.parquet")
    mine, best = calibration_part(records), None
    for name in records.estimators:
        found = records.labelled(name, only=mine)
        threshold = guaranteed_threshold(found.risk, found.is_error, max_error, 0.1)
        coverage = 0.0 if threshold is None else float((found.risk <= threshold).mean())
        if best is None or coverage > best[0]:
            scope = json.loads(records.table["versions"][0].as_py())["calibrations"].get(name)
            best = (coverage, name, threshold, scope)
    assert best is not None and best[2] is not None
    _, name, threshold, scope = best
    origin = Origin(records=records.name, scope=scope)
    return Policy(name="shipped", estimator=name, threshold=threshold, action="decline", calibrated_on=origin)


@pytest.mark.model
def test_of_thirty_prompts_that_ask_for_no_fact_at_most_two_are_declined(embedded: LanguageModel) -> None:
    policy = certified_policy()
    groups = json.loads((ROOT / "tests" / "scope_prompts.json").read_text())
    prompts = [prompt for group in groups.values() for prompt in group][:30]
    assert len(prompts) == 30
    generation = GenerationConfig(max_new_tokens=16)
    asked = [[Message("user", text)] for text in prompts]
    outcomes = [judge(policy, answer).outcome for answer in embedded.answers(asked, (policy.estimator,), generation)]
    print({outcome: outcomes.count(outcome) for outcome in set(outcomes)})
    assert outcomes.count("declined") <= 2
    facts = ["What is the capital of France?", "What is the capital of Kyrgyzstan?", "What is 1 plus 1?"]
    inside = embedded.answers([[Message("user", text)] for text in facts], (policy.estimator,), generation)
    assert "cannot_judge" not in [judge(policy, answer).outcome for answer in inside]
