"""The scope that ships, on prompts it was not fitted to, read by the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.scope_fit import prompt_states
from uqchat.calibration import read_calibrations
from uqchat.language_model import LanguageModel
from uqchat.paths import ASSETS, ROOT
from uqchat.scope import ScopeDetector
from uqchat.types import Message

FACTS = 40


def shipped_detectors(root: Path = ASSETS / "estimators") -> set[ScopeDetector]:
    """Every different detector of the calibrations that ship."""
    found = [read_calibrations(path.parent) for path in sorted(root.glob("*/*/calibration.json"))]
    scopes = [one.scope for both in found if both for one in (both.token, both.answer) if one is not None]
    return {scope.detector for scope in scopes if scope.detector is not None}


@pytest.mark.model
def test_prompts_that_ask_for_no_fact_are_outside_and_questions_inside(embedded: LanguageModel, shared: Path) -> None:
    detectors = shipped_detectors()
    if not detectors:
        pytest.skip("no calibration with a scope ships")
    prompts = [p for group in json.loads((ROOT / "tests" / "scope_prompts.json").read_text()).values() for p in group]
    lines = (shared / "data" / "open_qa" / "easy_facts_eval.jsonl").read_text(encoding="utf-8").splitlines()
    facts = [json.loads(line)["question"] for line in lines[:: len(lines) // FACTS][:FACTS]]
    for layer in {detector.layer for detector in detectors}:
        states = prompt_states(embedded.info, [[Message("user", text)] for text in (*prompts, *facts)], layer)
        for detector in (one for one in detectors if one.layer == layer):
            is_outside = [detector.outside_probability(state) > 0.5 for state in states]
            assert sum(is_outside[:30]) >= 27
            assert sum(is_outside[30:]) <= 2
