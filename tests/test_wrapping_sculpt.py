"""A model wrapped with a sculpt head gives the estimator's numbers, for whole batches and any causal model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import uqchat
from tests.estimators.test_sculpt import CONFIG, saved
from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.errors import InputError
from uqchat.estimators.sculpt import Measure, Sculpt
from uqchat.heads.logit_variance import LogitVariance
from uqchat.language_model import LanguageModel
from uqchat.origin import ArtifactError, Origin
from uqchat.types import Message

IDS = torch.randint(0, 200, (5, 30), generator=torch.Generator().manual_seed(3))  # more positions than one block has


@pytest.mark.parametrize("measure", ["expected_entropy", "sigma"])
def test_a_wrapped_model_gives_the_engines_numbers(tmp_path: Path, measure: Measure) -> None:
    model = LanguageModel(tiny_model())
    folder = saved(model, tmp_path / "a", measure)
    answer = model.answer([Message("user", "hello there")], [str(folder)], GenerationConfig(max_new_tokens=8))
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids = torch.tensor([[*prompt, *(token.token_id for token in answer.tokens)]])
    wrapped = uqchat.wrap(model, "sculpt", folder=folder)
    with torch.no_grad():
        logits, risk = wrapped(input_ids=ids, return_risk=True)
        torch.testing.assert_close(logits, model.model(ids).logits)
        torch.testing.assert_close(wrapped(ids), logits)
    assert risk.shape == ids.shape
    raw = -torch.log1p(-risk[0, len(prompt) - 1 : -1])  # risks of a random model are all near 1
    expected = [token.risks[str(folder)].raw for token in answer.tokens]
    assert raw.tolist() == pytest.approx(expected, abs=1e-3) and max(expected) - min(expected) > 0.05
    model.close()


def test_without_variance_the_risk_is_the_entropy_of_the_plain_softmax(tmp_path: Path) -> None:
    """With all tokens but those of the shortlist as one class, by the definition; sigma is exp(-25)."""
    model = LanguageModel(tiny_model())
    folder = saved(model, tmp_path / "a", log_variance=-50.0)
    with torch.no_grad():
        logits, risk = uqchat.wrap(model.model, "sculpt", folder=folder)(IDS, return_risk=True)
    likeliest = logits.softmax(dim=-1).sort(dim=-1, descending=True).values
    classes = torch.cat([likeliest[..., :250], likeliest[..., 250:].sum(dim=-1, keepdim=True)], dim=-1)
    entropy = torch.special.entr(classes).sum(dim=-1)
    torch.testing.assert_close(-torch.log1p(-risk), entropy, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "mamba", "neox"])
@pytest.mark.parametrize("measure", ["expected_entropy", "sigma"])
def test_any_causal_model_can_be_wrapped_and_a_batch_is_its_rows(tmp_path: Path, kind: str, measure: Measure) -> None:
    model = tiny_model(kind).model
    Sculpt(replace(CONFIG, measure=measure), LogitVariance(32, 2, 8, 4), model, Origin()).save(tmp_path)
    wrapped = uqchat.wrap(model, "sculpt", folder=tmp_path)
    with torch.no_grad():
        _, together = wrapped(IDS, return_risk=True)
        alone = torch.cat([wrapped(row[None], return_risk=True)[1] for row in IDS])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert 0 < float(together.min()) and float(together.max()) <= 1


def test_sigma_is_of_the_token_that_follows_and_of_the_likeliest_in_the_end(tmp_path: Path) -> None:
    model = LanguageModel(tiny_model())
    wrapped = uqchat.wrap(model, "sculpt", folder=saved(model, tmp_path / "a", "sigma"))
    with torch.no_grad():
        out = model.model(IDS, output_hidden_states=True)
        judged = torch.cat([IDS[:, 1:], out.logits[:, -1:].argmax(-1)], dim=1)
        states = torch.stack(out.hidden_states[1:], dim=2).flatten(0, 1)
        own = model.model.lm_head.weight[judged.flatten()][:, None]
        sigma = (wrapped.head(states, own)[:, 0] / 2).exp().view(IDS.shape)
        _, risk = wrapped(IDS, return_risk=True)
    torch.testing.assert_close(risk, 1 - (-sigma).exp())
    with pytest.raises(InputError, match="input_ids"):
        wrapped(inputs_embeds=model.model.get_input_embeddings()(IDS), return_risk=True)


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(tiny_model())
    with pytest.raises(InputError, match="python -m trainers sculpt"):
        uqchat.wrap(model, "sculpt")
    with pytest.raises(InputError, match="cannot take"):
        uqchat.wrap(model, "sculpt", width=8)
    with pytest.raises(ArtifactError, match="no config.json"):
        uqchat.wrap(model, "sculpt", folder=tmp_path)
    folder, other = saved(model, tmp_path / "a"), tiny_model("qwen2").model
    with pytest.raises(ArtifactError, match="trained for tiny-llama"):
        uqchat.wrap(other, "sculpt", folder=folder)
    wrapped = uqchat.wrap(other, "sculpt", folder=folder, allow_mismatch=True)
    with pytest.raises(InputError, match="python -m trainers sculpt"):
        wrapped(IDS, training=True)
