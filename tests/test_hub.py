"""Downloads from a Hub on this machine: what is fetched, kept, resumed and refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.fake_hub import COMMIT, FakeHub, Repository
from uqchat.errors import ModelCancelledError, ModelError
from uqchat.hub import download_model
from uqchat.loading import LoadProgress, Reporter

CONFIG = b'{"model_type": "llama"}'
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB
INDEX = json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).encode()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        hub.repositories["org/tiny"] = Repository(
            {
                "config.json": CONFIG,
                "tokenizer.json": b"{}",
                "README.md": b"#",
                "model.safetensors": WEIGHTS,
                "pytorch_model.bin": b"pickle",
                "original/consolidated.pth": b"pickle",
                "model.onnx": b"onnx",
                "modeling_own.py": b"print('hello')",
            }
        )
        yield hub


def download(repo_id: str = "org/tiny", reporter: Reporter | None = None, **options: object) -> Path:
    return download_model(repo_id, reporter or Reporter(), **options)[0]


def test_only_needed_files_are_fetched(hub: FakeHub) -> None:
    folder = download()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert folder.name == COMMIT


def test_code_is_fetched_only_when_it_may_run(hub: FakeHub) -> None:
    assert not (download() / "modeling_own.py").exists()
    assert (download(with_code=True) / "modeling_own.py").exists()


def test_progress_counts_the_bytes_of_the_weights(hub: FakeHub) -> None:
    seen: list[LoadProgress] = []
    download(reporter=Reporter(seen.append))
    counted = [p.done for p in seen if p.done]
    assert counted == sorted(counted) and len(counted) > 3
    assert {p.total for p in seen if p.done} == {len(WEIGHTS)} and counted[-1] == len(WEIGHTS)


def test_a_second_download_fetches_no_weights(hub: FakeHub) -> None:
    download()
    hub.requests.clear()
    download()
    assert hub.fetched() == []


def test_a_cancelled_download_goes_on_where_it_stopped(hub: FakeHub) -> None:
    cancel = threading.Event()

    def stop_half_way(progress: LoadProgress) -> None:
        if progress.done and progress.done > len(WEIGHTS) // 2:
            cancel.set()

    with pytest.raises(ModelCancelledError):
        download(reporter=Reporter(stop_half_way, cancel))
    hub.requests.clear()
    folder = download()
    ranges = [header for _, path, header in hub.requests if path.endswith("model.safetensors") and header]
    assert int(ranges[0].removeprefix("bytes=").rstrip("-")) > len(WEIGHTS) // 2
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_broken_connection_is_taken_up_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reporter, "pause", lambda self, seconds: None)
    hub.cut_after = [2_000_000, 1_000_000]
    assert (download() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_part_that_was_damaged_is_refused_and_fetched_anew(hub: FakeHub) -> None:
    cancel = threading.Event()
    with pytest.raises(ModelCancelledError):
        download(reporter=Reporter(lambda p: cancel.set() if p.done else None, cancel))
    part = next(Path(constants.HF_HUB_CACHE).rglob("*.uqchat.incomplete"))
    part.write_bytes(b"x" * part.stat().st_size)
    with pytest.raises(ModelError, match="damaged"):
        download()
    assert (download() / "model.safetensors").read_bytes() == WEIGHTS


def test_a_gated_model_asks_for_the_licence_and_opens_with_a_token(hub: FakeHub) -> None:
    hub.repositories["org/tiny"].is_gated = True
    with pytest.raises(ModelError, match="licence of org/tiny is not accepted.*give a token"):
        download()
    with pytest.raises(ModelError, match="the token given has no access") as caught:
        download(token="other-token")
    assert "other-token" not in str(caught.value)
    assert (download(token="good-token") / "config.json").exists()
    assert "good-token" in hub.tokens


def test_an_unknown_model_is_named(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="There is no model org/nothing on the Hub"):
        download("org/nothing")


@pytest.mark.parametrize("name", ["", "a b", "<script>alert(1)</script>", "${alert(1)}", "x" * 300, "a--b/c"])
def test_a_name_that_cannot_be_is_refused_before_any_request(hub: FakeHub, name: str) -> None:
    with pytest.raises(ModelError, match="is not a model's name"):
        download(name)
    assert hub.requests == []


def test_a_shard_missing_on_the_hub_is_named_before_weights_are_fetched(hub: FakeHub) -> None:
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "part-1.safetensors": WEIGHTS}
    hub.repositories["org/sharded"] = Repository(files)
    with pytest.raises(ModelError, match="incomplete on the Hub: its index names part-2.safetensors"):
        download("org/sharded")
    assert "part-1.safetensors" not in hub.fetched()


def test_all_shards_of_an_index_are_fetched(hub: FakeHub) -> None:
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX}
    hub.repositories["org/sharded"] = Repository(files | {"part-1.safetensors": b"1", "part-2.safetensors": b"2"})
    assert {p.name for p in download("org/sharded").iterdir()} >= {"part-1.safetensors", "part-2.safetensors"}


def test_too_large_for_the_disk_is_refused_before_weights_are_fetched(hub: FakeHub) -> None:
    free = shutil.disk_usage(constants.HF_HUB_CACHE if Path(constants.HF_HUB_CACHE).exists() else "/").free
    hub.repositories["org/tiny"].sizes["model.safetensors"] = free * 2
    with pytest.raises(ModelError, match="Not enough disk"):
        download()
    assert "model.safetensors" not in hub.fetched()


def test_a_repository_of_gguf_files_says_what_to_do(hub: FakeHub) -> None:
    hub.repositories["org/gguf"] = Repository({"model.Q4.gguf": b"GGUF"})
    with pytest.raises(ModelError, match="Download one of its .gguf files"):
        download("org/gguf")


def test_offline_uses_the_copy_and_asks_nobody(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download() == folder
    with pytest.raises(ModelError, match="not on this machine and HF_HUB_OFFLINE is set"):
        download("org/other")
    assert hub.requests == []


def test_without_network_the_copy_is_used_with_a_note(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download()
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert download_model("org/tiny", Reporter())[0] == folder
    assert "could not be reached" in download_model("org/tiny", Reporter())[1][0]
    with pytest.raises(ModelError, match="the Hub cannot be reached"):
        download("org/other")
