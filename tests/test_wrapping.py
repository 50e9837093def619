"""A wrapped model gives the engine's numbers, for any causal model and any loss, and learns by voter."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import uqchat
from tests.random_adapters import merged
from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine.adapters import Adapter, LowRank
from uqchat.errors import InputError
from uqchat.estimators.vote_files import VoteFiles, read_vote, write_vote
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.language_model import LanguageModel
from uqchat.origin import origin_of
from uqchat.types import Message

IDS = torch.randint(0, 200, (6, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("vote", "vote_instant", {"n_voters": 4, "weight_noise": 0.3, "alpha": 0.5, "rank": 3}),
        ("vote", "vote_instant", {"n_voters": 2, "noise": "dense", "prediction": "mean"}),
        ("dropout", "dropout_instant", {"n_samples": 3, "rate": 0.2}),
    ],
)
def test_a_wrapped_model_gives_the_engines_numbers(kind: str, name: str, options: dict) -> None:
    model = LanguageModel(tiny_model())
    asked = f"{name}:{','.join(f'{key}={value}' for key, value in options.items())}"
    answer = model.answer([Message("user", "hello there")], [asked], GenerationConfig(max_new_tokens=8))
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids = torch.tensor([[*prompt, *(token.token_id for token in answer.tokens)]])
    with torch.no_grad():
        logits, risk = uqchat.wrap(model, kind, **options)(ids, return_risk=True)
    assert logits.shape == (*ids.shape, logits.shape[-1]) and risk.shape == ids.shape
    own = slice(len(prompt) - 1, -1)  # position i predicts token i + 1
    expected = [token.risks[asked].value for token in answer.tokens]
    assert risk[0, own].tolist() == pytest.approx(expected, abs=1e-4) and max(expected) > 0.01
    log_probs = logits.log_softmax(-1)[0, own]
    expected = [token.logprob for token in answer.tokens]
    assert [float(row[t.token_id]) for row, t in zip(log_probs, answer.tokens, strict=True)] == pytest.approx(
        expected, abs=1e-4
    )
    model.close()


@pytest.mark.parametrize(("kind", "param_filter"), [("gpt2", "c_attn"), ("mamba", "in_proj"), ("neox", "query_key")])
def test_any_causal_model_can_be_wrapped(kind: str, param_filter: str) -> None:
    model = tiny_model(kind).model
    wrapped = uqchat.wrap(model, "vote", param_filter=param_filter)
    with torch.no_grad():
        plain = model(IDS).logits
        logits, risk = wrapped(IDS, return_risk=True)
        voters = [merged(model, Adapter("v", dict(voter)))(IDS).logits.softmax(-1) for voter in wrapped.voters()]
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    mean = torch.stack(voters).mean(0)
    information = torch.special.entr(mean).sum(-1) - torch.special.entr(torch.stack(voters)).sum(-1).mean(0)
    torch.testing.assert_close(risk, information.clamp(0) / math.log(3), atol=1e-4, rtol=1e-3)


def test_in_training_each_row_is_seen_by_one_voter_and_only_voters_learn() -> None:
    model = tiny_model().model
    wrapped = uqchat.wrap(model, "vote", n_voters=3)
    with torch.no_grad():
        logits = wrapped(IDS, training=True)
        for row in range(6):
            voter = merged(model, Adapter("v", dict(wrapped.voters()[row % 3])))
            torch.testing.assert_close(logits[row], voter(IDS[row : row + 1]).logits[0], atol=1e-4, rtol=1e-4)
    trainable = [name for name, one in wrapped.named_parameters() if one.requires_grad]
    assert trainable and all(name.startswith("changes.") for name in trainable)
    wrapped(IDS[[0, 1, 2]], training=True)[0].logsumexp(-1).sum().backward()  # of row 0 alone, so of voter 0
    for parameter in wrapped.changes.parameters():
        assert parameter.grad[0].abs().sum() > 0 and parameter.grad[1:].abs().sum() == 0


def test_a_step_of_training_lowers_the_loss_and_the_voters_can_be_saved(tmp_path: Path) -> None:
    model = LanguageModel(tiny_model())
    wrapped = uqchat.wrap(model.model, "vote", n_voters=2, rank=4)
    optimiser, losses = torch.optim.Adam(wrapped.changes.parameters(), 1e-2), []
    for _ in range(6):
        logits = wrapped(input_ids=IDS, attention_mask=torch.ones_like(IDS), training=True)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    files = VoteFiles(VoteSettings(n_voters=2, rank=4), wrapped.voters(), origin_of(model))
    write_vote(files, tmp_path)
    for old, new in zip(wrapped.voters(), read_vote(tmp_path, model).voters, strict=True):
        assert set(old) == set(new) and all(isinstance(one, LowRank) for one in old.values())
        for layer in old:
            torch.testing.assert_close(new[layer].b @ new[layer].a, old[layer].b @ old[layer].a)


@pytest.mark.parametrize("options", [{"n_voters": 1}, {"weight_noise": 0}, {"alpha": 0}])
def test_voters_that_cannot_disagree_have_no_risk(options: dict) -> None:
    with torch.no_grad():
        _, risk = uqchat.wrap(tiny_model().model, "vote", **options)(IDS, return_risk=True)
    assert float(risk.max()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("magic", {}, "Known: vote, dropout"),
        ("vote", {"voters": 3}, "cannot take"),
        ("vote", {"param_filter": "q_prj"}, "q_proj"),
        ("vote", {"weight_noise": -1}, "0 or more"),
        ("dropout", {"rate": 1.0}, "below 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: str, options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        uqchat.wrap(tiny_model().model, kind, **options)


def test_a_batch_that_cannot_be_shared_out_is_refused_with_both_numbers() -> None:
    wrapped = uqchat.wrap(tiny_model().model, "vote", n_voters=4)
    with pytest.raises(InputError, match="multiple of 4; got 6"):
        wrapped(IDS, training=True)
    with pytest.raises(InputError, match="one voter only"):
        wrapped(IDS[:4], training=True, return_risk=True)
