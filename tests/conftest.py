"""Fixtures of all tests: private folders, the shared data, the embedded model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needs import skip_or_fail

if TYPE_CHECKING:
    from uqchat.language_model import LanguageModel

# Before anything imports gradio or huggingface_hub: tests never leave this machine.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# One thread: OpenMP's threads wait for each other by spinning, which stalls a machine that also runs a browser.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# None of the user's settings reach a test. The cache folder stays: the embedded model is converted once, not every run.
KEPT = ("UQCHAT_SHARED", "UQCHAT_CHROMIUM", "UQCHAT_CACHE_DIR")
for name in [name for name in os.environ if name.startswith("UQCHAT_") and name not in KEPT]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def private_data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's database, secret or estimators."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("UQCHAT_DATA_DIR", str(folder))
    monkeypatch.setenv("UQCHAT_ESTIMATORS_DIR", str(folder / "estimators"))
    return folder


@pytest.fixture
def private_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, for tests that convert, break or fill it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("UQCHAT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data sets and reference results, named by UQCHAT_SHARED."""
    named = os.environ.get("UQCHAT_SHARED")
    if not named:
        skip_or_fail("UQCHAT_SHARED is not set: it names the folder with data/ and fixtures/")
    if not (Path(named) / "data").is_dir():
        skip_or_fail(f"UQCHAT_SHARED={named} has no folder data/")
    return Path(named)


@pytest.fixture(scope="session")
def embedded() -> Iterator[LanguageModel]:
    """The real embedded model in float32, loaded once for all tests."""
    import uqchat

    model = uqchat.load("embedded", dtype="float32")
    yield model
    model.close()
