"""A probe reads what it says it reads, token by token as in one go; released layouts mean what their networks say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import tiny_model
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request, StepEvent
from uqchat.engine.decode import Engine
from uqchat.estimators.probe import Probe
from uqchat.estimators.probe_files import ProbeFiles, make_part
from uqchat.estimators.probe_parts import PartConfig, Reading, StackedMLP, prefix_inputs
from uqchat.language_model import LanguageModel, from_loaded
from uqchat.origin import ArtifactError, origin_of
from uqchat.types import Signals, TokenStep

ALL = (
    Reading(0, "prompt"),
    Reading(1, "last"),
    Reading(2, "mean"),
    Reading(1, "last_minus_prompt"),
    Reading(2, "mean_minus_prompt"),
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A tiny one."""
    return from_loaded(tiny_model())


def make_probe(model: LanguageModel, has_tokens: bool = True) -> Probe:
    """A random one that reads everything."""
    torch.manual_seed(3)
    answer = make_part(PartConfig(ALL, use_confidence=True, sizes=(8,), members=2), 32)
    tokens = make_part(PartConfig(ALL[1:2], sizes=(), members=1), 32) if has_tokens else None
    for part in filter(None, (answer, tokens)):
        part.module.mean.normal_()
        part.module.scale.uniform_(0.5, 2)
        part.module.requires_grad_(False).eval()
    return Probe(ProbeFiles(answer, tokens, origin_of(model, training_data="made")))


def steps_of(probe: Probe, model: LanguageModel, count: int = 6, ends: bool = True) -> list[TokenStep]:
    """Steps of an answer; with `ends` the last is the end token."""
    ids = model.tokenizer("Some answer").input_ids[: count - ends]
    ids += [model.tokenizer.eos_token_id] if ends else []
    prompt = tuple(model.tokenizer("A question?").input_ids)
    request = Request(prompt, GenerationConfig(max_new_tokens=0), tuple(ids), probe.needs | Signals(entropy=True))
    engine = Engine(model.model, model.tokenizer)
    return [event.step for event in engine.stream([request]) if isinstance(event, StepEvent)]


def stacked(steps: list[TokenStep]) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Rows of hidden states, and -log p and entropy of the tokens that are no end token."""
    states = {layer: torch.stack([s.signals.hidden[layer] for s in steps]) for layer in (0, 1, 2)}
    return states, torch.tensor([(-s.logprob, s.entropy) for s in steps if not s.is_end])


def test_positions_are_what_their_names_say() -> None:
    rows = torch.tensor([[1.0, 10], [3, 20], [5, 60], [100, 0]])
    confidence = torch.tensor([[0.5, 2.0], [1.5, 1.0], [1.0, 3.0]])
    config = PartConfig(tuple(Reading(0, r.position) for r in ALL), use_confidence=True)
    (found,) = prefix_inputs(config, {0: rows}, confidence, torch.tensor([2])).tolist()
    mean, last, prompt = [4, 40], [5, 60], [1, 10]
    expected = [*prompt, *last, *mean, 4, 50, 3, 30]  # by hand: last - prompt = (4, 50), mean - prompt = (3, 30)
    expected += [1.0, 1.5, 1.5, 2.0, 1.5, 1.0, 0.6931472]  # means, highest, newest, log 2
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("ends", [True, False])
def test_streamed_risks_equal_those_of_the_rows_at_once(model: LanguageModel, ends: bool) -> None:
    probe = make_probe(model)
    steps = steps_of(probe, model, ends=ends)
    states, confidence = stacked(steps)
    answer, tokens = probe.parts.answer, probe.parts.tokens
    lengths = torch.arange(1, len(confidence) + 1)
    by_token = tokens.module(prefix_inputs(tokens.config, states, confidence, lengths)).mean(-1)
    state, risks = probe.new_state(), {}
    for step in steps:
        found = probe.score_token(step, state)
        assert set(found) <= {step.index, step.index - 1}
        risks |= found
    risks |= probe.finish(state)
    for index in range(len(confidence)):
        assert risks[index].raw == pytest.approx(by_token[index].item(), abs=1e-5)
        assert risks[index].value == pytest.approx(torch.sigmoid(by_token[index]).item(), abs=1e-6)
    whole = answer.module(prefix_inputs(answer.config, states, confidence, lengths[-1:])).mean().item()
    risk, summary = probe.score_answer([], state)
    assert risk.raw == summary.mean == pytest.approx(whole, abs=1e-5)


def test_without_a_part_for_tokens_every_token_gets_the_answers_risk(model: LanguageModel) -> None:
    probe = make_probe(model, has_tokens=False)
    answer = model_answer(model, probe)
    assert probe.level == "answer"
    raws = {token.risks["probe"].raw for token in answer if not token.is_end}
    assert len(raws) == 1


def model_answer(model: LanguageModel, probe: Probe) -> list:
    """Scored tokens of a short answer."""
    from uqchat.scoring import Scorer

    scorer = Scorer([probe])
    for step in steps_of(probe, model):
        scorer.push(step)
    scorer.finish()
    return scorer.tokens


def test_reasoning_is_not_read_as_part_of_the_answer(model: LanguageModel) -> None:
    probe = make_probe(model)
    steps = steps_of(probe, model)
    marked = [replace(step, is_reasoning=step.index < 2) for step in steps]
    state = probe.new_state()
    for step in marked:
        probe.score_token(step, state)
    states, confidence = stacked(steps)
    states = {layer: rows[2:] for layer, rows in states.items()}  # what predicted the answer's first token
    part = probe.parts.answer
    inputs = prefix_inputs(part.config, states, confidence[2:], torch.tensor([len(confidence) - 2]))
    assert probe.score_answer([], state)[0].raw == pytest.approx(part.module(inputs).mean().item(), abs=1e-5)


def test_members_side_by_side_equal_separate_networks() -> None:
    torch.manual_seed(0)
    stack = StackedMLP(5, (4, 3), members=2).eval()
    stack.mean.normal_()
    stack.scale.uniform_(0.5, 2)
    inputs = torch.randn(7, 5)
    for member in range(2):
        layers = []
        for weight, bias in zip(stack.weights, stack.biases, strict=True):
            layer = nn.Linear(weight.shape[2], weight.shape[1])
            layer.weight.data, layer.bias.data = weight[member].detach(), bias[member].detach()
            layers += [layer, nn.ReLU()]
        expected = nn.Sequential(*layers[:-1])((inputs - stack.mean) / stack.scale)[:, 0]
        torch.testing.assert_close(stack(inputs)[:, member], expected)


def test_a_saved_probe_scores_the_same(model: LanguageModel, tmp_path: Path) -> None:
    probe = make_probe(model)
    probe.save(tmp_path)
    again = Probe.from_folder(tmp_path, model, "mine")
    assert (again.name, again.level, again.needs) == ("mine", "token", probe.needs)
    steps = steps_of(probe, model)
    for step in steps:
        assert step.signals is not None
    states = [probe.new_state(), again.new_state()]
    for step in steps:
        assert probe.score_token(step, states[0]) == again.score_token(step, states[1])
    assert "layer 2, mean minus prompt" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("has_temperature", [False, True])
def test_released_layouts_give_the_probability_of_being_wrong(
    model: LanguageModel, tmp_path: Path, has_temperature: bool
) -> None:
    torch.manual_seed(1)
    sizes = [32, 256, 128, 64, 2]
    layers = [nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
    network = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1]).requires_grad_(False)
    weights, temperature = dict(network.state_dict()), 1.0
    if has_temperature:
        temperature = 2.5
        weights = {f"0.{key}": tensor for key, tensor in weights.items()}
        weights["1.log_temperature"] = torch.tensor(temperature).log()
    torch.save(weights, tmp_path / "classifier_model.bin")
    probe = Probe.from_folder(tmp_path, model, "released")
    steps = steps_of(probe, model)
    state = probe.new_state()
    for step in steps:
        probe.score_token(step, state)
    last_read = steps[-1].signals.hidden[2].float()  # the end token's row has read the last word
    is_wrong = (network(last_read) / temperature).softmax(-1)[0].item()
    assert probe.score_answer([], state)[0].value == pytest.approx(is_wrong, abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"0.weight": torch.zeros(256, 7)}, "is no released probe"),
        ({"0.weight": "run me"}, "cannot be read as plain tensors"),
    ],
)
def test_a_damaged_released_probe_is_refused(model: LanguageModel, tmp_path: Path, weights: dict, message: str) -> None:
    torch.save(weights, tmp_path / "classifier_model.bin")
    with pytest.raises(ArtifactError, match=message):
        Probe.from_folder(tmp_path, model, "released")


def test_a_probe_of_another_model_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    make_probe(model).save(tmp_path)
    other = from_loaded(tiny_model(seed=5))
    with pytest.raises(ArtifactError, match="fingerprint"):
        Probe.from_folder(tmp_path, other, "probe")
    Probe.from_folder(tmp_path, other, "probe", allow_mismatch=True)


def test_steps_without_the_layer_are_refused(model: LanguageModel) -> None:
    probe = make_probe(model)
    step = replace(steps_of(probe, model)[0], signals=None)
    with pytest.raises(Exception, match="needs hidden states of layer 0"):
        probe.score_token(step, probe.new_state())
