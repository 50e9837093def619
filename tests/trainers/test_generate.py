"""Generation caches what the model really computed, goes on after a kill, and asks every question once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_models import make_tiny_llama
from trainers.__main__ import main
from trainers.answers import ANSWERS, AnswerRow
from trainers.cache import FeatureCache
from trainers.capture import default_layers
from uqchat.paths import ROOT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with random weights."""
    return make_tiny_llama(tmp_path_factory.mktemp("model"), window=256)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file of twelve questions."""
    path = tmp_path / "made_train.jsonl"
    rows = [{"id": f"q{i}", "question": f"What is {i} plus {i * i}?", "answers": [str(i + i * i)]} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(tiny: Path, asked: Path, out: Path, *more: str) -> list[str]:
    """The shell's arguments for a run in float32."""
    settings = ["--model", str(tiny), "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "9"]
    return ["data", "generate", "--set", "made", "--file", str(asked), "--out", str(out), *settings, *more]


def whole_forward(tiny: Path, row: AnswerRow) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Hidden states, attention and log-probabilities by one eager forward of transformers, answer rows only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    prompt = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([[*prompt, *row.answer_ids]])
    with torch.inference_mode():
        out = model(ids, output_hidden_states=True, output_attentions=True)
    rows = slice(len(prompt) - 1, ids.shape[1] - 1)
    attention = torch.stack([a[0] for a in out.attentions])  # (L, H, S, S)
    windows = [[attention[:, :, q, q - lag] for lag in range(3)] for q in range(len(prompt) - 1, ids.shape[1] - 1)]
    window = torch.stack([torch.stack(lags, dim=-1) for lags in windows])
    hidden = [h[0, rows].numpy() for h in out.hidden_states]
    return hidden, window.numpy(), out.logits[0, rows].log_softmax(-1).numpy()


def test_the_cache_holds_what_one_eager_forward_computes(tiny: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(arguments(tiny, asked, out, "--style", "short", "--layers", "0,1,2")) == 0
    cache = FeatureCache.open(out)
    train = [row.id for row in cache.answers]
    assert len(train) == len(set(train)) and 8 <= len(train) <= 11  # a fifth of the twelve calibrates
    for i in (0, len(train) - 1):
        row, span = cache.answers[i], cache.span(i)
        hidden, attention, log_probs = whole_forward(tiny, row)
        for layer in (0, 1, 2):
            np.testing.assert_allclose(cache.array(f"hidden_{layer}")[span], hidden[layer], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(cache.array("attention")[span], attention, atol=1e-3)
        chosen = log_probs[range(len(row.answer_ids)), row.answer_ids]
        np.testing.assert_allclose(cache.array("logprob")[span], chosen, atol=1e-4)
        np.testing.assert_allclose(cache.array("top_logprobs")[span], np.sort(log_probs)[:, ::-1][:, :10], atol=1e-4)
        np.testing.assert_allclose(cache.array("entropy")[span], -(np.exp(log_probs) * log_probs).sum(1), atol=1e-4)
        np.testing.assert_array_equal(cache.array("token_id")[span], row.answer_ids)
        assert row.max_new_tokens == 9 and row.messages[0]["role"] == "system"


def test_train_and_calibration_share_no_question_and_make_up_the_file(tiny: Path, asked: Path, tmp_path: Path) -> None:
    ids = {}
    for part in ("train", "calibration"):
        assert main(arguments(tiny, asked, tmp_path / part, "--split", part, "--lags", "0")) == 0
        ids[part] = {row.id for row in FeatureCache.open(tmp_path / part).answers}
        assert "attention" not in FeatureCache.open(tmp_path / part).names
    assert not ids["train"] & ids["calibration"]
    assert ids["train"] | ids["calibration"] == {f"q{i}" for i in range(12)}


def test_drawn_answers_come_on_top_of_the_greedy_one_and_differ(tiny: Path, asked: Path, tmp_path: Path) -> None:
    drawn = ("--samples", "2", "--temperature", "2", "--limit", "4", "--calibration", "0", "--k-shot", "1")
    assert main(arguments(tiny, asked, tmp_path / "out", *drawn)) == 0
    rows = FeatureCache.open(tmp_path / "out").answers
    assert [row.sample for row in rows] == [0, 1, 2] * 4
    assert [row.temperature for row in rows[:3]] == [0, 2, 2]
    assert all(rows[3 * i + 1].answer_ids != rows[3 * i + 2].answer_ids for i in range(4))
    assert [turn["role"] for turn in rows[0].messages] == ["user", "assistant", "user"]
    assert rows[0].messages[0]["content"] != rows[0].question


def test_a_killed_run_goes_on_to_the_same_answers(tiny: Path, asked: Path, tmp_path: Path) -> None:
    assert main(arguments(tiny, asked, tmp_path / "whole", "--calibration", "0")) == 0
    out = tmp_path / "killed"
    command = arguments(tiny, asked, out, "--calibration", "0")
    code = f"import trainers.generate as g; g.FLUSH = 1; from trainers.__main__ import main; main({command!r})"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and child.poll() is None:
        if (out / ANSWERS).exists() and (out / ANSWERS).read_bytes().count(b"\n") >= 2:
            os.kill(child.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    child.wait()
    assert main(command) == 0
    whole, again = FeatureCache.open(tmp_path / "whole"), FeatureCache.open(out)
    assert [row.key for row in again.answers] == [row.key for row in whole.answers]
    assert [row.answer_ids for row in again.answers] == [row.answer_ids for row in whole.answers]
    np.testing.assert_allclose(again.array("hidden_1"), whole.array("hidden_1"), atol=2e-3)
    before = (out / ANSWERS).read_bytes()
    assert main(command) == 0 and (out / ANSWERS).read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--samples", "2"], "at temperature 0 are all the greedy one"),
        (["--layers", "1,9"], "must be from 0 to 2"),
        (["--layers", "a"], "must be numbers"),
        (["--max-new-tokens", "0"], "must be 1 or more"),
        (["--limit", "0"], "No question of"),
        (["--several", "5"], "easy_facts only"),
        (["--k-shot", "50"], "50 examples are wanted"),
        (["--max-disk", "0.0000001"], "would pass the cap"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    tiny: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(arguments(tiny, asked, tmp_path / "out", *more)) == 1
    assert said in capsys.readouterr().err


def test_a_set_that_does_not_exist_is_named_beside_those_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data" / "open_qa"
    folder.mkdir(parents=True)
    (folder / "made_train.jsonl").write_text("")
    monkeypatch.setenv("UQCHAT_SHARED", str(tmp_path))
    assert main(["data", "generate", "--set", "nowhere", "--out", str(tmp_path / "out")]) == 1
    assert "no set nowhere_train" in (said := capsys.readouterr().err) and "made_train" in said
    assert not (tmp_path / "out").exists()


def test_default_layers_fit_any_depth() -> None:
    assert default_layers(30) == (8, 12, 16, 20, 24, 30)
    assert all(0 <= layer <= 2 for layer in default_layers(2))
