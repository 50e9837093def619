"""Vote and dropout: risks follow from the votes, options are read, folders and instant voters work in answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.random_adapters import low_rank, merged
from tests.tiny import tiny_model
from uqchat.artifact_folders import require_plausible
from uqchat.config import GenerationConfig
from uqchat.engine.adapters import Adapter
from uqchat.engine.voters import mutual_information
from uqchat.errors import InputError
from uqchat.estimators.dropout import Dropout
from uqchat.estimators.dropout_files import DropoutFiles, DropoutSettings, mask_of, masked_inputs, masked_lora
from uqchat.estimators.vote import Vote
from uqchat.estimators.vote_files import VoteFiles, write_vote
from uqchat.estimators.vote_noise import noise_voters
from uqchat.estimators.vote_options import aggregated, is_content, risk_of, split_name
from uqchat.estimators.vote_settings import VoteSettings
from uqchat.language_model import LanguageModel
from uqchat.models import load_model
from uqchat.origin import ArtifactError, origin_of
from uqchat.types import Answer, Risk, ScoredToken, Votes

SHORT = GenerationConfig(max_new_tokens=8)
ENDS = ("q_proj", "v_proj")


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    made = LanguageModel(tiny_model())
    yield made
    made.close()


# ---- from votes to risk


def test_risk_is_the_share_of_ln_n_or_four_variances_or_other_votes() -> None:
    """p = (1, 0): variance 1/4, which is the most there is; of 4 voters ln 2 nats are half of ln 4."""
    votes = Votes(math.log(2), 0.25, (1.0, 1.0, 0.0, 0.0))
    assert risk_of(votes, "mutual_information").value == pytest.approx(0.5)
    assert risk_of(votes, "mutual_information").raw == pytest.approx(math.log(2))
    assert (risk_of(votes, "variance").value, risk_of(votes, "variance").raw) == (1.0, 0.25)
    assert risk_of(votes, "vote_share").value == 0.75
    assert (risk_of(votes, "surprisal").value, risk_of(votes, "surprisal").raw) == (0.5, math.log(2))
    assert risk_of(Votes(0.0, 1.0, (0.3,)), "mutual_information").value == 0
    assert risk_of(votes, "variance").voters == (1.0, 1.0, 0.0, 0.0)


def token(index: int, text: str, value: float, is_end: bool = False) -> ScoredToken:
    return ScoredToken(index, index, text, (index, index), -1.0, 1.0, (), {"vote": Risk(value, value)}, False, is_end)


def test_an_answers_risk_is_the_maximum_or_the_mean_of_what_says_something() -> None:
    tokens = [token(0, "The", 0.9), token(1, " capital", 0.2), token(2, ",", 0.8), token(3, " Osh", 0.6)]
    tokens.append(token(4, "", 1.0, is_end=True))
    assert aggregated(tokens, "vote", "mean") is None
    assert aggregated(tokens, "vote", "max")[0].raw == 0.9
    assert aggregated(tokens, "vote", "content")[0].raw == pytest.approx(0.4)
    assert aggregated(tokens[2:3], "vote", "content")[0].raw == 0.8
    assert not is_content(" the") and is_content(" 1984") and not is_content("!\n")


def test_options_stand_behind_a_name_and_may_hold_commas() -> None:
    given = "vote_instant:param_filter=q_proj,v_{1,2},n_voters=5"
    assert split_name(given) == ("vote_instant", {"param_filter": "q_proj,v_{1,2}", "n_voters": "5"})
    for plain in ("vote", "/some/folder:x", "organisation/name", "C:\\x"):
        assert split_name(plain) == (plain, {})
    require_plausible([given, "vote:score=variance"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vote_instant:n_voters=0", "1 to 15"),
        ("vote_instant:n_voters=16", "1 to 15"),
        ("vote_instant:n_voters=many", "must be a int"),
        ("vote_instant:weight_noise=-1", "0 or more"),
        ("vote_instant:alpha=2", "0 to 1"),
        ("vote_instant:noize=1", "weight_noise"),
        ("vote_instant:score=luck", "mutual_information"),
        ("vote_instant:param_filter=q_prj", "q_proj"),
        ("dropout_instant:rate=1", "below 1"),
        ("entropy:size=1", "no options"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_is_allowed(model: LanguageModel, name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        model.answer("hi", [name], SHORT)


# ---- in answers


def probabilities(models: list[Any], ids: list[int], start: int) -> torch.Tensor:
    """(n, T, V) of the positions from `start` on, each predicted by the one before."""
    with torch.inference_mode():
        return torch.stack([one(torch.tensor([ids])).logits[0, start - 1 : -1].softmax(-1) for one in models])


def ids_of(model: LanguageModel, answer: Answer) -> tuple[list[int], int]:
    prompt = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert len(prompt) == answer.prompt_tokens
    return [*prompt, *(token.token_id for token in answer.tokens)], len(prompt)


@pytest.mark.parametrize("noise", ["low_rank", "dense"])
@pytest.mark.parametrize("alpha", ["1", "0.3"])
def test_an_instant_votes_risk_is_that_of_models_with_that_noise(model: LanguageModel, noise: str, alpha: str) -> None:
    name = f"vote_instant:noise={noise},alpha={alpha},n_voters=4"
    answer = model.answer("hello there", [name, "entropy"], SHORT)
    settings = VoteSettings(noise=noise, alpha=float(alpha), n_voters=4)
    voters = noise_voters(model.model, settings)
    ids, start = ids_of(model, answer)
    probs = probabilities([merged(model.model, Adapter("v", dict(voter))) for voter in voters], ids, start)
    expected = (mutual_information(probs) / math.log(4)).tolist()
    assert [token.risks[name].value for token in answer.tokens] == pytest.approx(expected, abs=1e-4)
    said = [value for value, token in zip(expected, answer.tokens, strict=True) if not token.is_end]
    assert answer.risks[name].value == pytest.approx(sum(said) / len(said), abs=1e-4)
    again = model.score("hello there", [token.token_id for token in answer.tokens], [name])
    assert [t.risks[name].value for t in again.tokens] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["vote:n_voters=1", "vote:weight_noise=0", "vote:alpha=0", "dropout:rate=0"])
def test_voters_that_cannot_disagree_give_0_and_take_one_row(model: LanguageModel, name: str) -> None:
    answer = model.answer("hello there", [name], SHORT)
    assert {token.risks[name].value for token in answer.tokens} == {0.0}
    assert len(model.estimator(name).needs.voters) == 1


def test_a_folder_of_voters_is_used_in_place_of_the_instant_ones(model: LanguageModel, private_data_dir: Path) -> None:
    assert model.estimator("vote").label == "Vote (instant)"
    voters = tuple(dict(low_rank(model.model, "v", 2 + number, ENDS, 0.2).deltas) for number in range(2))
    files = VoteFiles(VoteSettings(n_voters=2), voters, origin_of(model))
    write_vote(files, private_data_dir / "estimators" / "tiny-llama" / "vote")
    assert isinstance(model.estimator("vote"), Vote)
    answer = model.answer("hello there", ["vote", "vote:score=vote_share"], SHORT)
    ids, start = ids_of(model, answer)
    probs = probabilities([merged(model.model, Adapter("v", dict(voter))) for voter in voters], ids, start)
    expected = (mutual_information(probs) / math.log(2)).tolist()
    assert [token.risks["vote"].value for token in answer.tokens] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="n_voters"):
        model.estimator("vote:n_voters=3")


def test_answers_of_one_batch_each_have_their_votes(model: LanguageModel) -> None:
    questions = ["hello there", "what is that", "a"]
    together = model.answers(questions, ["vote_instant"], SHORT)
    for question, answer in zip(questions, together, strict=True):
        alone = model.answer(question, ["vote_instant"], SHORT)
        assert [t.token_id for t in answer.tokens] == [t.token_id for t in alone.tokens]
        values = [t.risks["vote_instant"].value for t in alone.tokens]
        assert [t.risks["vote_instant"].value for t in answer.tokens] == pytest.approx(values, abs=1e-4)


def test_a_quantised_base_has_instant_voters(tmp_path: Path) -> None:
    from tests.tiny_models import make_tiny_llama

    model = LanguageModel(load_model(str(make_tiny_llama(tmp_path)), dtype="float32", quantization="int8"))
    answer = model.answer("hi", ["vote_instant"], SHORT)
    assert max(token.risks["vote_instant"].value for token in answer.tokens) > 0
    model.close()


# ---- dropout


def test_a_mask_drops_its_share_and_keeps_the_mean() -> None:
    mask = mask_of(DropoutSettings(rate=0.25), "layer", 20_000, 0)
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(mask.mean()) == pytest.approx(1, abs=0.02) and float(mask.max()) == pytest.approx(4 / 3)
    assert not torch.equal(mask, mask_of(DropoutSettings(rate=0.25), "layer", 20_000, 1))


def test_instant_dropout_is_the_model_with_masked_attention_outputs(model: LanguageModel) -> None:
    answer = model.answer("hello there", ["dropout"], SHORT)
    rows = masked_inputs(model.model, DropoutSettings())
    ids, start = ids_of(model, answer)
    probs = probabilities([merged(model.model, Adapter("d", dict(row))) for row in rows], ids, start)
    expected = (mutual_information(probs) / math.log(5)).tolist()
    assert [token.risks["dropout"].value for token in answer.tokens] == pytest.approx(expected, abs=1e-4)
    assert max(expected) > 0.01


def test_a_loras_row_equals_peft_with_that_mask_in_place_of_its_dropout() -> None:
    loaded = tiny_model()
    adapter, settings = low_rank(loaded.model, "lora", 4, ENDS), DropoutSettings(n_samples=1, rate=0.3)
    (row,) = masked_lora(adapter, settings)
    peft = get_peft_model(
        tiny_model().model, LoraConfig(r=4, lora_alpha=2, target_modules=list(ENDS), lora_dropout=0.3)
    )
    ids = torch.arange(5, 15)[None]
    for layer, delta in adapter.deltas.items():
        module = peft.get_submodule(f"base_model.model.{layer}")
        module.lora_A["default"].weight.data.copy_(delta.a)
        module.lora_B["default"].weight.data.copy_(delta.b)
        mask = mask_of(settings, layer, delta.a.shape[1], 0)
        module.lora_dropout["default"] = torch.nn.Sequential()
        module.lora_dropout["default"].forward = lambda x, mask=mask: x * mask
    with torch.inference_mode():
        expected = peft(ids).logits
        found = merged(loaded.model, Adapter("row", dict(row)))(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_folder_of_a_dropout_lora_gives_it_back(model: LanguageModel, tmp_path: Path) -> None:
    adapter = low_rank(model.model, "lora", 4, ENDS)
    Dropout(DropoutFiles(DropoutSettings(n_samples=3, rate=0.2), adapter, origin_of(model))).save(tmp_path)
    answer = model.answer("hello there", [str(tmp_path)], SHORT)
    rows = masked_lora(adapter, DropoutSettings(n_samples=3, rate=0.2))
    ids, start = ids_of(model, answer)
    probs = probabilities([merged(model.model, Adapter("d", dict(row))) for row in rows], ids, start)
    expected = (mutual_information(probs) / math.log(3)).tolist()
    assert [token.risks[str(tmp_path)].value for token in answer.tokens] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ArtifactError, match="trained for"):
        LanguageModel(tiny_model(seed=1)).estimator(str(tmp_path))
