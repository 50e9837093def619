"""The lookback ratio against whole attention maps of transformers' eager attention."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.estimators import get_estimators
from uqchat.language_model import LanguageModel
from uqchat.scoring import rescore
from uqchat.types import TokenStep

SHORT = GenerationConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(tiny_model())


def expected_risks(model: LanguageModel, prompt_ids: list[int], answer_ids: list[int]) -> list[float]:
    """1 - LR of equation 1, averaged over layers and heads, position by position, from the whole maps."""
    eager = type(model.model)._from_config(model.model.config, attn_implementation="eager")
    eager.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        maps = eager(torch.tensor([prompt_ids + answer_ids]), output_attentions=True).attentions
    risks, first = [], len(prompt_ids)
    for t in range(len(answer_ids)):
        weights = torch.stack([one[0, :, first - 1 + t] for one in maps])  # (L, H, S)
        context = weights[..., :first].sum(-1) / first
        new = weights[..., first : first + t].sum(-1) / max(t, 1)
        risks.append((1 - context / (context + new)).mean().item())
    return risks


def test_streamed_and_given_answers_have_the_ratio_of_the_whole_maps(model: LanguageModel) -> None:
    answer = model.answer("hello there", ("lookback", "rauq"), SHORT)
    ids = [t.token_id for t in answer.tokens]
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True
    )["input_ids"]
    expected = expected_risks(model, prompt, ids)
    assert [t.risks["lookback"].value for t in answer.tokens] == pytest.approx(expected, abs=1e-5)
    assert expected[0] == 0 and max(expected) > 0.1
    scored = model.score("hello there", ids, "lookback")
    assert [t.risks["lookback"].raw for t in scored.tokens] == pytest.approx(expected, abs=1e-5)
    assert rescore(answer.tokens, get_estimators("lookback"))[3].risks["lookback"] == answer.tokens[3].risks["lookback"]


def test_a_step_without_attention_is_refused() -> None:
    estimator = get_estimators("lookback")[0]
    with pytest.raises(InputError, match="needs attention on the prompt"):
        estimator.score_token(TokenStep(0, 1, "a", (0, 1), -1.0, 1.0, ()), estimator.new_state())


def test_a_second_estimator_that_reads_other_layers_changes_nothing(model: LanguageModel) -> None:
    """The lookback ratio reads all layers, RAUQ the middle third: each gets its own."""
    together = model.answer("hello there", ("rauq", "lookback"), SHORT)
    for name in ("rauq", "lookback"):
        alone = model.answer("hello there", name, SHORT)
        assert alone.risks[name].raw == pytest.approx(together.risks[name].raw, abs=1e-6)
