"""From a model's name to files on disk that are known to be whole. Knows file layouts, not how a model is built."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from uqchat.embedded import embedded_folder
from uqchat.errors import ModelError
from uqchat.hub import download_model
from uqchat.loading import Reporter
from uqchat.weights import Weights, read_gguf, read_safetensors, weight_files


@dataclass(frozen=True, slots=True)
class Source:
    """A folder that transformers reads, or one GGUF file in it, and the size of its weights."""

    folder: Path
    weights: Weights
    gguf: str | None = None
    notes: tuple[str, ...] = ()


def find_source(
    name: str, cache_dir: Path, reporter: Reporter, *, token: str | None = None, trust_remote_code: bool = False
) -> Source:
    """The files of a model: `embedded`, a GGUF file, a folder, or a Hub id, which is downloaded.

    Raises:
        ModelError: nothing of that name, incomplete or broken files, or the download failed.
        ModelCancelledError: cancelled on the way.
    """
    reporter.say("find", f"Looking for {name}")
    if name == "embedded":
        return folder_source(embedded_folder(cache_dir, reporter), trust_remote_code)
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {name}. Check the path.")
        return Source(path.parent.resolve(), read_gguf(path), path.name)
    if path.is_dir():
        return folder_source(path.resolve(), trust_remote_code)
    if path.exists():
        raise ModelError(f"{name} is a file of another kind; give a folder, a .gguf file, a Hub id or `embedded`.")
    if re.match(r"[./~\\]|[A-Za-z]:", name) or name.count("/") > 1:
        raise ModelError(f"There is no folder {name}. Check the path; a Hub id looks like owner/name.")
    folder, notes = download_model(name, reporter, token=token, with_code=trust_remote_code)
    source = folder_source(folder, trust_remote_code)
    return Source(source.folder, source.weights, notes=notes)


def folder_source(folder: Path, trust_remote_code: bool = False) -> Source:
    """Check a model's folder before anything is built from it. Raises ModelError as `find_source`."""
    config = _read_config(folder)
    if not trust_remote_code and _needs_own_code(config):
        raise ModelError(
            f"The model in {folder} ({config.get('model_type')}) runs Python code that it brings along, which is off."
            " Whoever runs the app can allow it with UQCHAT_TRUST_REMOTE_CODE=1, after reading that code."
        )
    files = weight_files(folder)
    if files[0].suffix == ".safetensors":
        return Source(folder, read_safetensors(files))
    bytes_each = 2 if "16" in str(config.get("dtype") or config.get("torch_dtype")) else 4
    return Source(folder, Weights(sum(path.stat().st_size for path in files) // bytes_each))


def _read_config(folder: Path) -> dict[str, object]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"{folder} holds an adapter, not a model: merge it into its base model first.")
        ggufs = sorted(p.name for p in folder.glob("*.gguf"))
        hint = f" It has GGUF files; name one of them: {', '.join(ggufs[:5])}." if ggufs else ""
        raise ModelError(f"{folder} holds no model: config.json is missing.{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Download or copy it again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's configuration. Download or copy it again.")
    return config


def _needs_own_code(config: dict[str, object]) -> bool:
    from transformers import CONFIG_MAPPING

    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING
