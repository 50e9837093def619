"""A head is trained from cached features, finds wrong tokens and answers, and scores live ones as it did the cached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_cache import forced_steps, make_model, make_tiny_cache
from trainers.__main__ import main
from trainers.answers import IGNORED
from trainers.head_data import make_batch, make_head_data, rows_of_answer
from trainers.head_metrics import scores
from trainers.training_set import DataConfig, TrainingSet, read_training_set
from trainers.uq_head import Standardised, TrainConfig, head_loss
from uqchat.estimators.uq_head import UqHead
from uqchat.features import make_features
from uqchat.heads import HeadScorer, load_head
from uqchat.heads.modules import make_head
from uqchat.language_model import LanguageModel
from uqchat.types import StepSignals, TokenStep

SMALL = ["--epochs", "20", "--batch-size", "16", "--head-dim", "16", "--num-inner", "16", "--n-layers", "1"]
SMALL += ["--n-heads", "2", "--dropout", "0.0", "--learning-rate", "0.01", "--hidden-layers", "[2]"]
SMALL += ["--validation", "0.2"]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The tiny one that gave the answers."""
    return make_model()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, model: LanguageModel) -> Path:
    """A few answers with labels."""
    folder = tmp_path_factory.mktemp("cache")
    make_tiny_cache(folder, model)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A complete run."""
    folder = tmp_path_factory.mktemp("runs") / "head"
    assert main(["uq-head", "--run-dir", str(folder), "--caches", json.dumps([str(cache)]), *SMALL]) == 0
    return folder


def data_of(cache: Path) -> TrainingSet:
    return read_training_set(DataConfig(caches=(str(cache),)), lambda line: None)


def test_it_learns_tokens_and_answers_together(run: Path) -> None:
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["validation auroc"] > 0.8
    assert metrics["validation token_auroc"] > 0.8 and metrics["validation within_auroc"] > 0.8


def half(step: TokenStep) -> TokenStep:
    """The step with its signals rounded as the cache keeps them."""
    signals = step.signals
    hidden = {layer: state.half().float() for layer, state in signals.hidden.items()}
    attention = signals.attention.half().float()
    rounded = StepSignals(hidden, attention, signals.attention_layers, signals.top_logprobs)
    return TokenStep(**{**{n: getattr(step, n) for n in step.__dataclass_fields__}, "signals": rounded})


def test_features_of_the_cache_are_those_of_the_live_engine(cache: Path, run: Path, model: LanguageModel) -> None:
    head, data = load_head(run / "artifact", model), data_of(cache)
    for index in (0, 9, 40):
        row = data.rows[index]
        rows = rows_of_answer(data, index, head.features)
        expected = head.module(rows[None])[0]
        scorer, found = HeadScorer(head), {}
        for step in forced_steps(model, row.question, row.answer_ids, head.needs):
            found |= scorer.push(half(step))
        found |= scorer.finish()
        logits = torch.tensor([found[i] for i in range(len(rows))])
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_estimators_answer_score_is_the_one_that_was_trained(cache: Path, run: Path, model: LanguageModel) -> None:
    from uqchat.scoring import Scorer

    estimator, data = UqHead.from_folder(run / "artifact", model, "uq_head"), data_of(cache)
    features = estimator.head.features
    module = Standardised(estimator.head.module, torch.zeros(features.width), torch.ones(features.width))
    answers, _ = scores(module, make_head_data(data.subset(range(3)), features))
    for index, expected in enumerate(answers):
        row, scorer = data.rows[index], Scorer([estimator])
        for step in forced_steps(model, row.question, row.answer_ids, estimator.needs):
            scorer.push(step)
        scorer.finish()
        assert scorer.answer_scores()[0]["uq_head"].raw == pytest.approx(expected, abs=0.02)  # float16 in the cache


def test_standardising_is_folded_into_the_first_layer() -> None:
    torch.manual_seed(0)
    head = make_head("saplma", 5, {"internal_dim1": 4, "internal_dim2": 3, "internal_dim3": 2})
    mean, scale, rows = torch.randn(5), torch.rand(5) + 0.5, torch.randn(7, 5) * 3
    module = Standardised(head, mean, scale)
    expected = head((rows[None] - mean) / scale)
    head.load_state_dict(module.folded())
    torch.testing.assert_close(head(rows[None]), expected, rtol=1e-5, atol=1e-6)


def test_ignored_tokens_and_padding_do_not_enter_the_loss(cache: Path) -> None:
    """By hand: every logit 0 gives log 2 for each unit of weight; logits on ignored rows change nothing."""
    data = data_of(cache)
    features = make_features(({"name": "token_confidence"},), data.shape)
    material = make_head_data(data, features)

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
            logits = torch.where(batch.labels == IGNORED, 1e4, 0.0) + self.weight
            return logits, torch.zeros(len(logits))

    value, weight = head_loss(material, 1.0, 0.5)(Constant(), range(10))
    assert value.item() == pytest.approx(weight * 0.6931472, rel=1e-5)


def test_an_answer_without_token_labels_gives_them_its_own(cache: Path) -> None:
    from dataclasses import replace

    data = data_of(cache)
    data.rows = [replace(row, token_labels=None) for row in data.rows]
    material = make_head_data(data, make_features(({"name": "token_confidence"},), data.shape))
    for index, row in enumerate(data.rows[:5]):
        own = material.labels[material.starts[index] : material.starts[index + 1]].tolist()
        assert own == [int(row.is_error)] * (len(row.answer_ids) - 1) + [IGNORED]


def test_claims_are_runs_of_equal_labels_and_the_whole_answer(cache: Path) -> None:
    data = data_of(cache)
    material = make_head_data(data, make_features(({"name": "token_confidence"},), data.shape))
    material.labels[: material.starts[1]] = IGNORED
    material.labels[:3] = torch.tensor([1, 1, 0])[:3]
    claims = make_batch(material, [0], torch.device("cpu")).claims()[0]
    assert claims[0].nonzero()[:, 0].tolist() == [0, 1] and claims[1].nonzero()[:, 0].tolist() == [2]
    assert claims[-1].sum() == int(material.counts[0])


@pytest.mark.parametrize("head_type", ["linear", "luh", "claim"])
def test_published_shapes_are_trained_too(tmp_path: Path, cache: Path, model: LanguageModel, head_type: str) -> None:
    folder = tmp_path / "run"
    arguments = ["uq-head", "--run-dir", str(folder), "--caches", json.dumps([str(cache)]), *SMALL]
    arguments += ["--head-type", head_type, "--use-confidence", "false", "--use-position", "false", "--epochs", "2"]
    assert main(arguments) == 0
    head = load_head(folder / "artifact", model)
    assert head.level == ("claim" if head_type == "claim" else "token")
    assert not head.needs.prompt_rows


def test_a_head_that_must_read_the_prompt_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["uq-head", "--run-dir", str(tmp_path / "run"), "--caches", json.dumps([str(cache)]), *SMALL]
    assert main([*arguments, "--head-type", "claim_light"]) == 1
    assert "reads the prompt's rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden-layers", "[7]"], "names 7, but this model has"),
        (["--hidden-layers", "[0]"], "lacks layer 0"),
        (["--attention-lags", "5"], "lacks 5 attention lags"),
        (["--head-type", "magic"], "Unknown head type 'magic'"),
    ],
)
def test_features_that_are_not_there_are_told(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    base = ["uq-head", "--run-dir", str(tmp_path / "run"), "--caches", json.dumps([str(cache)]), *SMALL]
    assert main([*base, *arguments]) == 1
    assert message in capsys.readouterr().err


def test_settings_that_read_nothing_are_refused(cache: Path) -> None:
    from trainers.common import LoopConfig
    from uqchat.errors import InputError

    with pytest.raises(InputError, match="reads nothing"):
        TrainConfig(
            DataConfig(caches=(str(cache),)),
            LoopConfig(),
            hidden_layers=(),
            attention_lags=0,
            top_n=0,
            use_confidence=False,
            use_position=False,
        )
