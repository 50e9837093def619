"""Members of a combination that are chosen beside it run once, and no number tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.estimators.test_combination import Asking, combined, steps
from tests.estimators.test_probe import make_probe
from tests.heads.making import random_head
from tests.tiny import tiny_model
from tests.trainers.tiny_cache import make_tiny_cache
from trainers.replay import Opened, replay
from uqchat.config import GenerationConfig
from uqchat.estimators.base import AnswerContext
from uqchat.estimators.combination import Combination, Formula, Member
from uqchat.estimators.entropy import Entropy
from uqchat.estimators.probe import Probe
from uqchat.estimators.probe_files import ProbeFiles, make_part
from uqchat.estimators.probe_parts import PartConfig, Reading, StackedMLP
from uqchat.heads import save_head
from uqchat.heads.token_heads import Luh
from uqchat.language_model import LanguageModel, from_loaded
from uqchat.origin import origin_of
from uqchat.scoring import Scorer
from uqchat.types import Answer, TokenStep

BOTH = (Member("../probe"), Member("../uq_head"), Member("../uq_head", "max"), Member("entropy", "max"))
CHOICES = (("mix", "probe", "uq_head"), ("uq_head", "mix", "probe"), ("probe", "entropy", "mix"))


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    """A tiny one."""
    made = from_loaded(tiny_model())
    yield made
    made.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a network of each kind has run."""
    counts = {"probe": 0, "head": 0}
    for key, kind, method in (("probe", StackedMLP, "forward"), ("head", Luh, "classify")):

        def counted(self: object, *args: object, key: str = key, run: object = getattr(kind, method)) -> object:
            counts[key] += 1
            return run(self, *args)

        monkeypatch.setattr(kind, method, counted)
    return counts


def make_mix(model: LanguageModel, root: Path, members: Sequence[Member] = BOTH) -> None:
    """A probe, a head that judges earlier tokens anew, and a combination of such and of an untrained score."""
    make_probe(model).save(root / "probe")
    head = random_head("luh", model.model, is_causal=False)
    save_head(replace(head, info=origin_of(model, training_data="made")), root / "uq_head")
    formula = Formula((1.0, 2.0, 0.5, 0.25)[: len(members)], -1.0)
    Combination(members, {}, formula, formula, origin_of(model), is_by_word=True).save(root / "mix")


def score(model: LanguageModel, names: Sequence[str]) -> Answer:
    return model.score("A question?", "Some answer. And more.", names)


def assert_same(one: Answer, other: Answer, name: str) -> None:
    """To the last bit."""
    assert one.risks[name] == other.risks[name] and one.summaries[name] == other.summaries[name]
    assert [token.risks[name] for token in one.tokens] == [token.risks[name] for token in other.tokens]


@pytest.mark.parametrize("chosen", CHOICES)
def test_scores_are_the_same_whoever_else_is_chosen(
    model: LanguageModel, private_data_dir: Path, chosen: tuple[str, ...]
) -> None:
    make_mix(model, private_data_dir / "estimators" / "tiny-llama")
    together = score(model, chosen)
    for name in chosen:
        assert_same(together, score(model, [name]), name)


@pytest.mark.parametrize("chosen", CHOICES)
def test_a_members_network_runs_as_often_as_if_nobody_else_were_chosen(
    model: LanguageModel, private_data_dir: Path, calls: dict[str, int], chosen: tuple[str, ...]
) -> None:
    make_mix(model, private_data_dir / "estimators" / "tiny-llama")
    score(model, ["mix"])
    alone = dict(calls)
    assert min(alone.values()) >= len("Some answer. And more.")  # once a byte, at least
    calls.update(dict.fromkeys(calls, 0))
    score(model, chosen)
    assert calls == alone


def test_a_member_that_was_trained_anew_is_not_taken_for_the_one_that_the_combination_knows(
    model: LanguageModel, private_data_dir: Path
) -> None:
    root = private_data_dir / "estimators" / "tiny-llama"
    make_mix(model, root)
    before = score(model, ["mix", "probe"])
    make_probe(model, has_tokens=False).save(root / "probe")
    after = score(model, ["mix", "probe"])
    assert after.tokens[0].risks["probe"] != before.tokens[0].risks["probe"]
    assert_same(before, after, "mix")


def test_answers_of_a_cache_are_scored_once_too(model: LanguageModel, tmp_path: Path, calls: dict[str, int]) -> None:
    make_mix(model, tmp_path, (Member("../probe"), Member("entropy")))
    part = make_part(PartConfig((Reading(1, "last"), Reading(2, "mean"))), 32)  # layers that the cache holds
    Probe(ProbeFiles(part, None, origin_of(model, training_data="made"))).save(tmp_path / "probe")
    cache, opened, found = make_tiny_cache(tmp_path / "cache", model, count=3), Opened(model.info), []
    for names in (["mix"], ["mix", "probe"], ["probe"]):
        calls["probe"] = 0
        estimators = [opened.uncalibrated(f"{name}={tmp_path / name}") for name in names]
        scored = [one.risks for one in replay(cache, estimators)]
        found.append(({name: [risks[name] for risks in scored] for name in names}, calls["probe"]))
    (alone, count), (together, again), (probe, _) = found
    assert together == alone | probe and again == count > 0


def test_each_is_told_the_replies_to_its_own_follow_ups(model: LanguageModel) -> None:
    asking, entropy = Asking(), Entropy()
    asking.source = "a folder"  # the same one, asked for twice
    one = combined(False, (Member("asking"), Member("entropy")), asking=asking, entropy=entropy)
    scorer = Scorer([one, asking], AnswerContext((), (), GenerationConfig(), model.tokenizer))
    for step in steps():
        scorer.push(step)
    scorer.finish()
    assert [len(wanted) for wanted in scorer.follow_ups()] == [1, 1]
    for number, logprob in enumerate((-4.0, -7.0)):
        scorer.take_replies(number, [TokenStep(0, 0, "", (0, 0), logprob, None)])
    risks, _ = scorer.answer_scores()
    # By hand, the mean entropy is 1.5: the combination's own reply is 4, the other's 7.
    assert risks["combination"].raw == pytest.approx(-1 + 4.0 + 2 * 1.5)
    assert risks["asking"].raw == 7.0
