"""Policies in the shell and in scripted chats: what is declined is not shown unasked, and is kept with the answer."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import ScriptedHost, ScriptedLanguageModel, scored_tokens
from uqchat import cli, cli_answer, cli_chat
from uqchat.cli_answer import drain as drain_with
from uqchat.config import AppConfig, GenerationConfig
from uqchat.conversation import AskSettings, Conversations
from uqchat.conversation_policy import MIN_SEEN, PolicyGate
from uqchat.errors import InputError
from uqchat.policy import Origin, Policy, PolicyStore
from uqchat.store import Store, StoredMessage
from uqchat.types import Message, Risk, ScoredToken


def risky(text: str, risk: float) -> tuple[ScoredToken, ...]:
    """An answer all of whose tokens have this risk by entropy."""
    return tuple(replace(t, risks={**t.risks, "entropy": Risk(risk, risk)}) for t in scored_tokens(text))


SCRIPTS = (risky("Lyon is big.", 0.9), risky("Paris is big.", 0.1))


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PolicyStore:
    """Where the shell and the page look for policies; one declines, one knows another model only."""
    monkeypatch.setenv("UQCHAT_POLICIES_DIR", str(tmp_path / "policies"))
    store = PolicyStore(tmp_path / "policies")
    store.save(Policy(name="careful", estimator="entropy", threshold=0.5, action="decline"))
    elsewhere = Origin(model="another")
    store.save(Policy(name="other", estimator="entropy", threshold=0.5, action="decline", calibrated_on=elsewhere))
    return store


@pytest.fixture
def shell(policies: PolicyStore, monkeypatch: pytest.MonkeyPatch) -> ScriptedLanguageModel:
    """The model of the shell's commands."""
    model = ScriptedLanguageModel(*SCRIPTS)
    for module in (cli_answer, cli_chat):
        monkeypatch.setattr(module, "load_language_model", lambda _: model)
    return model


def test_a_declined_answer_is_words_in_the_shell(shell: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["answer", "What?", "--policy", "careful"]) == 0
    out, err = capfd.readouterr()
    assert "I do not know this well enough" in out and "Lyon" not in out and "careful, version 1: declined" in err
    assert cli.main(["answer", "What?", "--policy", "careful@1"]) == 0
    assert "Paris is big." in capfd.readouterr().out


def test_json_holds_the_answer_and_the_decision(shell: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["answer", "What?", "--policy", "careful", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["text"] == "Lyon is big." and found["decision"]["outcome"] == "declined"


def test_an_unknown_policy_is_refused_before_a_model_loads(shell: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["answer", "What?", "--policy", "gone"]) == 2
    assert "Known: careful@1, other@1" in capfd.readouterr().err and shell.requests == []


def test_the_terminal_shows_a_declined_answer_when_asked(
    shell: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["What?", "/show", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert cli.main(["chat", "--policy", "careful"]) == 0
    out = capfd.readouterr().out
    assert out.index("I do not know") < out.index("Lyon is big.")


def answered(tmp_path: Path, host: ScriptedHost, policy: str, text: str = "What?") -> StoredMessage:
    """One stored answer of a chat that obeys the policy."""
    store = Store("sqlite://")
    talk = Conversations(store, host, AppConfig(policies_dir=tmp_path / "policies"))
    chat, run = talk.ask("ann", None, text, AskSettings(policy=policy))
    assert run.join(10)
    return store.path("ann", chat)[-1]


def test_a_chat_keeps_the_decision_with_the_answer(policies: PolicyStore, tmp_path: Path) -> None:
    declined = answered(tmp_path, ScriptedHost(SCRIPTS[0]), "careful@1")
    assert declined.text == "Lyon is big." and declined.scores.decision.outcome == "declined"
    passed = answered(tmp_path, ScriptedHost(SCRIPTS[1]), "careful")
    assert passed.scores.decision.outcome == "answered" and passed.scores.decision.version == 1
    assert answered(tmp_path, ScriptedHost(SCRIPTS[0]), "").scores.decision is None


def test_a_chat_with_another_model_is_not_judged(policies: PolicyStore, tmp_path: Path) -> None:
    kept = answered(tmp_path, ScriptedHost(SCRIPTS[0]), "other")
    assert kept.scores.decision.outcome == "cannot_judge" and "made for another" in kept.scores.decision.reason


def test_an_estimator_that_the_model_cannot_serve_judges_nothing(policies: PolicyStore, tmp_path: Path) -> None:
    policies.save(Policy(name="head", estimator="uq_head", threshold=0.1, action="decline"))
    kept = answered(tmp_path, ScriptedHost(SCRIPTS[0]), "head")
    assert kept.text == "Lyon is big." and kept.scores.decision.outcome == "cannot_judge"


def test_a_policy_that_is_gone_stops_the_question_before_it_is_kept(policies: PolicyStore, tmp_path: Path) -> None:
    store = Store("sqlite://")
    talk = Conversations(store, ScriptedHost(), AppConfig(policies_dir=tmp_path / "policies"))
    with pytest.raises(InputError, match="no policy 'gone'"):
        talk.ask("ann", None, "What?", AskSettings(policy="gone"))
    assert store.list_chats("ann") == []


def test_a_declined_answer_is_not_seen_while_it_is_written(policies: PolicyStore, tmp_path: Path) -> None:
    host = ScriptedHost(SCRIPTS[0], hold_after=2)
    store = Store("sqlite://")
    talk = Conversations(store, host, AppConfig(policies_dir=tmp_path / "policies"))
    _, run = talk.ask("ann", None, "What?", AskSettings(policy="careful"))
    time.sleep(0.05)
    assert run.snapshot().tokens == ()
    host.release()
    assert run.join(10) and run.snapshot().text == "Lyon is big."


def test_a_chat_whose_risks_are_unlike_the_calibrations_is_warned(policies: PolicyStore, tmp_path: Path) -> None:
    seen = Origin(risks=tuple(i / 100 for i in range(101)))
    for name, origin in (("alike", seen), ("unlike", Origin(risks=(0.0,) * 101))):
        policies.save(Policy(name=name, estimator="entropy", threshold=1.0, calibrated_on=origin))
    scripts = [risky("x", (7 * i % 40) / 40) for i in range(40)]
    for name, is_warned in (("alike", False), ("unlike", True)):
        host = ScriptedHost(*scripts)
        gate = PolicyGate(host, AppConfig(policies_dir=tmp_path / "policies"))
        policy = gate.find(name)
        answers = [
            drain_with(gate.stream(policy, [Message("user", "?")], (), GenerationConfig()), None) for _ in scripts
        ]
        warned = ["Careful" in answer.decision.basis for answer in answers]
        assert any(warned) == is_warned and not any(warned[: MIN_SEEN - 1])
