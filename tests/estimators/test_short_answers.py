"""What every untrained score says of an answer of one token, of none, and of the end token alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.heads.making import random_head
from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.estimators import ESTIMATOR_NAMES
from uqchat.heads import save_head
from uqchat.language_model import LanguageModel
from uqchat.types import Answer

LETTER = 65


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


def expected_of_one(answer: Answer, index: int) -> dict[str, float]:
    """Raw scores of an answer that is judged by this token alone: nothing before it to carry on or to look at."""
    token = answer.tokens[index]
    first, second = (alternative.logprob for alternative in token.alternatives[:2])
    return {
        "entropy": token.entropy,
        "max_prob": -first,
        "margin": 1 - (pow(2.718281828459045, first) - pow(2.718281828459045, second)),
        "rauq": 1 - token.logprob,
        "lookback": 0.0,
    }


@pytest.mark.parametrize("has_end", [False, True], ids=["one token", "one token and the end"])
def test_one_token_is_judged_by_itself(model: LanguageModel, has_end: bool) -> None:
    ids = [LETTER, model.tokenizer.eos_token_id][: 1 + has_end]
    (answer,) = model.scores(["hello"], [ids], ESTIMATOR_NAMES)
    assert len(answer.tokens) == len(ids) and list(answer.risks) == list(ESTIMATOR_NAMES)
    for name, raw in expected_of_one(answer, 0).items():
        found = answer.summaries[name]
        assert answer.risks[name].raw == pytest.approx(raw, abs=1e-6), name
        assert (found.mean, found.max, found.sum) == pytest.approx((raw, raw, raw), abs=1e-6), name


def test_the_end_token_alone_is_judged_by_itself(model: LanguageModel) -> None:
    (answer,) = model.scores(["hello"], [[model.tokenizer.eos_token_id]], ESTIMATOR_NAMES)
    assert answer.text == "" and answer.tokens[0].is_end
    for name, raw in expected_of_one(answer, 0).items():
        assert answer.risks[name].raw == pytest.approx(raw, abs=1e-6), name


def test_no_token_gives_no_risk_and_no_failure(model: LanguageModel, tmp_path: Path) -> None:
    names = [*ESTIMATOR_NAMES, "query_zero_shot"]
    for kind, options in (("luh", {}), ("saplma", {}), ("claim", {})):
        save_head(random_head(kind, model.model, **options), tmp_path / kind)
        names.append(str(tmp_path / kind))
    for answer in model.answers(["hello", "there"], names, GenerationConfig(max_new_tokens=0)):
        assert answer.tokens == () and answer.risks == answer.summaries == answer.failures == {}


def test_short_answers_in_one_batch_are_judged_as_alone(model: LanguageModel) -> None:
    end = model.tokenizer.eos_token_id
    answers = [[LETTER], [end], [LETTER, LETTER + 1, end], [LETTER, end]]
    together = model.scores(["hello"] * 4, answers, ESTIMATOR_NAMES)
    for ids, many in zip(answers, together, strict=True):
        alone = model.score("hello", ids, ESTIMATOR_NAMES)
        for name in ESTIMATOR_NAMES:
            assert many.risks[name].raw == pytest.approx(alone.risks[name].raw, abs=1e-4), (name, ids)
