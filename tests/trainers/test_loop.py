"""A run that was killed, stopped or split ends as one that was not; what fails says why and keeps the last good."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers import toy
from trainers import checkpoints
from trainers.common import LoopConfig, Run, TrainingError
from trainers.loop import _Loop, epoch_order
from trainers.run_folder import write_json
from uqchat.errors import InputError
from uqchat.paths import ROOT

SETTINGS = ["--epochs", "4", "--batch-size", "5", "--log-every", "1", "--checkpoint-every", "7"]
STEPS = 40  # 50 examples in batches of 5, 4 times


def start(folder: Path, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The toy as a process of its own."""
    command = [sys.executable, *launcher, "-m", "tests.trainers.toy", "--run-dir", str(folder), *SETTINGS, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def lines(folder: Path) -> list[dict[str, float]]:
    """Whole lines of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(folder: Path, count: int) -> None:
    """Until so many lines of metrics are there."""
    for _ in range(2000):
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    pytest.fail("the run never came so far")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert toy.main(["--run-dir", str(folder), *SETTINGS]) == 0
    return folder


def assert_same_run(folder: Path, whole: Path) -> None:
    """Bitwise: the loss curve and the weights."""
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((folder / "result.json").read_text()) == json.loads((whole / "result.json").read_text())


def test_the_folder_tells_everything(whole: Path) -> None:
    assert json.loads((whole / "config.json").read_text())["loop"]["batch_size"] == 5
    status = json.loads((whole / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"], status["progress"]) == ("done", STEPS, STEPS, 1.0)
    assert [line["step"] for line in lines(whole) if "loss" in line] == list(range(1, STEPS + 1))
    assert "validation_auroc" in lines(whole)[-1] and "Done" in (whole / "log.txt").read_text()


def test_a_run_killed_at_a_random_step_ends_bitwise_like_one_that_was_not(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--seconds-a-step", "0.05")
    wait_for(folder, random.randint(8, STEPS - 5))
    process.kill()
    process.communicate()
    assert not (folder / "result.json").exists() and checkpoints.complete(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "seconds_a_step": 0.0})
    assert toy.main(["--run-dir", str(folder), *SETTINGS, "--resume"]) == 0
    assert "Resumed from step" in (folder / "log.txt").read_text()
    assert_same_run(folder, whole)


@pytest.mark.parametrize("how", ["STOP", "SIGTERM"])
def test_a_run_asked_to_stop_writes_a_checkpoint_and_ends_cleanly(tmp_path: Path, whole: Path, how: str) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--seconds-a-step", "0.05")
    wait_for(folder, 10)
    (folder / "STOP").touch() if how == "STOP" else process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped" and status["step"] < STEPS
    assert checkpoints.read_last(folder, 0).step == status["step"]
    assert not (folder / "STOP").exists()
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "seconds_a_step": 0.0})
    assert toy.main(["--run-dir", str(folder), *SETTINGS, "--resume"]) == 0
    assert_same_run(folder, whole)


def test_two_processes_train_the_same_module_as_one(tmp_path: Path) -> None:
    """`accelerate launch` starts several processes without a GPU only by a settings file."""
    settings = tmp_path / "accelerate.yaml"
    settings.write_text("distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\nmixed_precision: 'no'\n")
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(settings), "--main_process_port", free_port())
    more = ("--dropout", "0", "--accumulation", "2")  # the processes would draw different masks
    process = start(tmp_path / "two", *more, launcher=launcher)
    assert process.wait(timeout=100) == 0, process.stderr.read()
    assert toy.main(["--run-dir", str(tmp_path / "one"), *SETTINGS, *more]) == 0
    names = {path.name for path in checkpoints.complete(tmp_path / "two")[-1].glob("random-*.pt")}
    assert names == {"random-0.pt", "random-1.pt"}
    one, two = ([line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-4, atol=1e-5)


def free_port() -> str:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    curves = []
    for parts in (1, 3):
        module = toy.make_module(dropout=0.0)
        config = LoopConfig(epochs=2, batch_size=10, accumulation=parts, log_every=1, evaluations_per_epoch=0)

        def loss(module: torch.nn.Module, indices: list[int]) -> tuple[torch.Tensor, float]:
            weights = 1.0 + torch.tensor(indices) % 3  # parts of different weight
            rows = module(toy.INPUTS[indices])[:, 0]
            each = torch.nn.functional.binary_cross_entropy_with_logits(rows, toy.TARGETS[indices], reduction="none")
            return (each * weights).sum(), weights.sum().item()

        with Run(tmp_path / str(parts), {}) as run:
            _Loop(run, module, 50, loss, config, None, "", None).go()
        curves.append([line["loss"] for line in lines(tmp_path / str(parts))])
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-5, atol=1e-6)


def test_bf16_trains_too(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--precision", "bf16")
    assert process.wait(timeout=60) == 0, process.stderr.read()
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert toy.main(["--run-dir", str(folder), *SETTINGS, "--nan-at", "17"]) == 1
    assert "loss is nan at step 17" in capsys.readouterr().err
    kept = checkpoints.read_last(folder, 0)
    assert kept.step == 14 and all(tensor.isfinite().all() for tensor in kept.module.values())
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and "step-00000014" in status["message"]


def test_a_full_disk_is_told_and_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = torch.save, [0]

    def full(*args: object, **options: object) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise OSError(28, "No space left on device")
        real(*args, **options)

    monkeypatch.setattr(torch, "save", full)
    folder = tmp_path / "run"
    assert toy.main(["--run-dir", str(folder), *SETTINGS]) == 1
    assert "disk is full" in capsys.readouterr().err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000007"]


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    last = checkpoints.complete(folder)[-1]
    (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:-1])
    assert checkpoints.complete(folder)[-1] != last
    assert checkpoints.read_last(folder, 0).step == 35


def test_early_stopping_gives_the_best_weights(tmp_path: Path) -> None:
    module, seen = toy.make_module(0.0), []

    def loss(module: torch.nn.Module, indices: list[int]) -> tuple[torch.Tensor, float]:
        return module(toy.INPUTS[indices]).square().sum(), len(indices)

    def evaluate(module: torch.nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        return {"auroc": [0.5, 0.9, 0.8, 0.7][len(seen) - 1]}

    config = LoopConfig(epochs=10, batch_size=10, patience=2, checkpoint_every=100)
    with Run(tmp_path / "run", {}) as run:
        result = _Loop(run, module, 50, loss, config, evaluate, "auroc", None).go()
    assert (result.steps, result.best_step, dict(result.metrics)) == (20, 10, {"auroc": 0.9})
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, seen[1][name], rtol=0, atol=0)
    saved = load_file(checkpoints.complete(tmp_path / "run")[-1] / "best.safetensors")
    torch.testing.assert_close(saved["0.weight"], seen[1]["0.weight"], rtol=0, atol=0)


def test_every_example_is_read_once_an_epoch_in_another_order_each() -> None:
    first, second = epoch_order(30, 0, 0), epoch_order(30, 0, 1)
    assert sorted(first) == sorted(second) == list(range(30)) and first != second
    assert epoch_order(30, 0, 0) == first and epoch_order(30, 1, 0) != first


def test_a_folder_of_another_run_is_refused(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    with pytest.raises(TrainingError, match="already holds a run"):
        Run(whole, config)
    assert Run(whole, config, is_main=False).path == whole  # of several processes only the main one asks
    with pytest.raises(TrainingError, match="begun with nan_at = 0, now it is 3"):
        Run(whole, {**config, "nan_at": 3}, resume=True)


def test_a_complete_run_is_not_run_again(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert toy.main(["--run-dir", str(whole), *SETTINGS, "--resume"]) == 0
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "batch_size = 0 is not allowed"),
        (["--epochs", "many"], "epochs must be of type int"),
        (["--config", "/nowhere.json"], "cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        toy.read_settings(toy.ToyConfig, _parsed(["--run-dir", str(tmp_path / "run"), *arguments]))


def test_a_settings_file_is_read_and_arguments_win(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"epochs": 3, "batch_size": 9}))
    arguments = ["--run-dir", "x", "--config", str(path), "--batch-size", "4"]
    config = toy.read_settings(toy.ToyConfig, _parsed(arguments))
    assert (config.loop.epochs, config.loop.batch_size) == (3, 4)
    path.write_text(json.dumps({"speed": 3}))
    with pytest.raises(InputError, match="Unknown setting 'speed'"):
        toy.read_settings(toy.ToyConfig, _parsed(arguments))


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    toy.add_run_arguments(parser, toy.ToyConfig)
    return parser.parse_args(arguments)
