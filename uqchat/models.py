"""Find and load a language model: embedded, Hub id, folder or GGUF file. Knows no engine and no interface."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqchat.config import AppConfig
from uqchat.embedded import embedded_folder
from uqchat.loading import LoadProgress, Reporter
from uqchat.placement import choose_device, choose_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, in eval mode, without gradients; its tokenizer always has a chat template."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    quantization: str | None
    context_window: int
    notes: tuple[str, ...] = ()


def load_model(
    name: str = "embedded",
    device: str | None = None,
    dtype: Any = None,
    quantization: str | None = None,
    *,
    trust_remote_code: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> LoadedModel:
    """Load a model by name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reporter = Reporter(on_progress, cancel)
    device = choose_device(device)
    chosen = choose_dtype(dtype, device)
    folder = embedded_folder(Path(cache_dir) if cache_dir else AppConfig().cache_dir, reporter)
    reporter.say("load", f"Loading {name}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, local_files_only=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(False)
    model.eval().to(device)
    return LoadedModel(
        name, model, tokenizer, device, str(chosen).removeprefix("torch."), None, model.config.max_position_embeddings
    )
