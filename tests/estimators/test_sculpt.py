"""Sculpt streams what its head says of each token; folders that do not fit are refused with the reason."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_model
from uqchat.errors import InputError, UqchatError
from uqchat.estimators.sculpt import Measure, Sculpt, SculptConfig
from uqchat.heads.logit_variance import LogitVariance
from uqchat.language_model import LanguageModel, from_loaded
from uqchat.origin import ArtifactError, origin_of

CONFIG = SculptConfig((1, 2), width=8, rank=4, shortlist=250, samples=64)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return from_loaded(tiny_model())


def saved(model: LanguageModel, folder: Path, measure: Measure = "expected_entropy", log_variance: float = 0.0) -> Path:
    """A random head; `log_variance` is added to what it says."""
    torch.manual_seed(3)
    head = LogitVariance(32, 2, CONFIG.width, CONFIG.rank)
    torch.nn.init.normal_(head.state.weight, std=0.3)
    torch.nn.init.constant_(head.state.bias[-1:], log_variance)
    Sculpt(replace(CONFIG, measure=measure), head, model.model, origin_of(model)).save(folder)
    return folder


def test_without_variance_the_risk_is_the_entropy_of_the_plain_softmax(model: LanguageModel, tmp_path: Path) -> None:
    """All but 10 tokens have a variance; at sigma 1e-10 nothing moves."""
    name = str(saved(model, tmp_path / "a", log_variance=-50.0))
    answer = model.answer("Who?", estimators=("entropy", name))
    assert len(answer.tokens) > 5
    for token in answer.tokens:
        ours, plain = token.risks[name], token.risks["entropy"]
        others = plain.raw - ours.raw  # the entropy among the tokens that are one class here
        assert -1e-3 < others < 0.2
        assert ours.value == pytest.approx(1 - math.exp(-ours.raw), rel=1e-5)


def test_the_same_answer_given_or_streamed_has_the_same_risks(model: LanguageModel, tmp_path: Path) -> None:
    name = str(saved(model, tmp_path / "a"))
    streamed = model.answer("Who?", estimators=(name,))
    given = model.score("Who?", [token.token_id for token in streamed.tokens], estimators=(name,))
    for ours, theirs in zip(streamed.tokens, given.tokens, strict=True):
        assert ours.risks[name].raw == pytest.approx(theirs.risks[name].raw, rel=1e-4)


def test_sigma_is_that_of_the_chosen_token(model: LanguageModel, tmp_path: Path) -> None:
    """By the head on states and embedding of a plain forward of transformers."""
    estimator = Sculpt.from_folder(saved(model, tmp_path / "a", "sigma"), model, "sigma")
    scored = model.score("Who?", [70, 90], estimators=(str(tmp_path / "a"),))
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        states = model.model(torch.tensor([[*prompt, 70]]), output_hidden_states=True).hidden_states
        rows = torch.stack([states[1][0, -2:], states[2][0, -2:]], dim=1)
        own = model.model.get_output_embeddings().weight[[70, 90]][:, None]
        sigma = (0.5 * estimator.head(rows, own)).exp()[:, 0].tolist()
    assert [token.risks[str(tmp_path / "a")].raw for token in scored.tokens] == pytest.approx(sigma, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"measure": "variance"}, "measure of sculpt must be expected_entropy or sigma"),
        ({"layers": [0, 1]}, "reads its logits off layer 1; this model's last is 2"),
        ({"layers": "x"}, "layers of sculpt must be hidden states"),
        ({"rank": 0}, "rank of sculpt must be a whole number"),
        ({"width": 9}, "The weights in .* do not fit"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    model: LanguageModel, tmp_path: Path, change: dict[str, object], text: str
) -> None:
    folder = saved(model, tmp_path / "a")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ArtifactError, match=text):
        Sculpt.from_folder(folder, model, "sculpt")


def test_another_base_model_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    folder = saved(model, tmp_path / "a")
    other = from_loaded(tiny_model("qwen2"))
    with pytest.raises(UqchatError, match="This head was trained for tiny-llama"):
        Sculpt.from_folder(folder, other, "sculpt")
    assert Sculpt.from_folder(folder, other, "sculpt", allow_mismatch=True).needs.hidden_layers == (1, 2)


def test_a_configuration_is_checked_where_it_is_made() -> None:
    with pytest.raises(InputError, match="samples of sculpt"):
        SculptConfig((1, 2), samples=0)
