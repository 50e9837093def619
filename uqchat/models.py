"""Find and load a language model: embedded, Hub id, folder or GGUF file. Knows no engine and no interface.

`sources` finds the files and checks them, `placement` says where and how the model runs, this file builds it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from uqchat.catalogue import ModelChoice, known_models
from uqchat.config import AppConfig
from uqchat.errors import ModelError, UqchatError
from uqchat.gguf_model import load_gguf
from uqchat.int8 import quantize_linear_layers
from uqchat.loading import LoadProgress, Reporter, gigabytes, without_bars
from uqchat.own_memory import own_memory
from uqchat.placement import bytes_per_parameter, check_quantization, choose_device, choose_dtype
from uqchat.sources import Source, find_source
from uqchat.weights import free_memory

__all__ = ["LoadProgress", "LoadedModel", "ModelChoice", "known_models", "load_model"]

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
WINDOW_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
DEFAULT_WINDOW = 2048
FILE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, in eval mode, without gradients; its tokenizer always has a chat template.

    `dtype` is the torch name ("bfloat16"), `context_window` counts tokens, `notes` are sentences for the user.
    """

    name: str
    model: PreTrainedModel | None  # None: another backend than the local engine computes
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: str
    quantization: str | None
    context_window: int
    notes: tuple[str, ...] = ()
    is_instruct: bool = True  # it brought a chat template of its own


def load_model(
    name: str = "embedded",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    *,
    trust_remote_code: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    cancel: threading.Event | None = None,
) -> LoadedModel:
    """Load a language model.

    Args:
        name: `embedded`, a Hub id, a folder, or a GGUF file.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None takes the fastest there is.
        dtype: float32, bfloat16, float16, their short names or torch dtypes; None takes what is fast on the device.
        quantization: None, "int8" (CPU), "bnb-8bit" or "bnb-4bit".
        trust_remote_code: run Python code that the model brings.
        token: of the Hub, for gated and private models; None uses the machine's login, if any.
        cache_dir: for the embedded model; None is the app's setting. Hub models go to the Hub's own cache.
        on_progress: called with every step, from this thread.
        cancel: set it from another thread to stop between steps.

    Raises:
        InputError: a device, dtype or quantization that is unknown or does not work here.
        ModelError: not found, not reachable, broken, unsupported, or too large for disk or memory.
        ModelCancelledError: `cancel` was set.
    """
    reporter = Reporter(on_progress, cancel)
    device = choose_device(device)
    quantization = check_quantization(quantization, device, is_gguf=name.lower().endswith(".gguf"))
    number_format = choose_dtype(dtype, device)
    folder = Path(cache_dir) if cache_dir else AppConfig().cache_dir
    source = find_source(name, folder, reporter, token=token, trust_remote_code=trust_remote_code)
    _require_memory(name, source, device, bytes_per_parameter(number_format, quantization))
    reporter.say("load", f"Loading {name}")
    try:
        with without_bars():
            tokenizer = _load_tokenizer(source, trust_remote_code)
            model = _load_weights(source, device, number_format, quantization, trust_remote_code)
    except Exception as error:  # a folder or repository of any origin can fail in any way; the cause stays attached
        raise _explained(error, name, device) from error
    reporter.check()
    window, window_notes = context_window(model.config)
    template_notes = _ensure_template(tokenizer)
    notes = (*source.notes, *template_notes, *window_notes)
    dtype_name = str(number_format).removeprefix("torch.")
    return LoadedModel(name, model, tokenizer, device, dtype_name, quantization, window, notes, not template_notes)


def _require_memory(name: str, source: Source, device: str, bytes_each: float) -> None:
    needed = source.weights.bytes_as(bytes_each) * 1.1
    free = free_memory(device)
    if needed > free:
        raise ModelError(
            f"Not enough memory: {name} needs about {gigabytes(needed)} on {device}, {gigabytes(free)} are free."
            " Unload the current model first, or choose a smaller one or quantization bnb-4bit."
        )


def _load_tokenizer(source: Source, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    options: dict[str, Any] = {"gguf_file": source.gguf} if source.gguf else {}
    return AutoTokenizer.from_pretrained(
        source.folder, local_files_only=True, trust_remote_code=trust_remote_code, **options
    )


def _load_weights(
    source: Source, device: str, dtype: torch.dtype, quantization: str | None, trust_remote_code: bool
) -> PreTrainedModel:
    if source.gguf:
        model, info = load_gguf(source.folder, source.gguf, dtype)
    else:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_placed(device, dtype, quantization),
        )
    _require_complete(info)
    if quantization in ("bnb-8bit", "bnb-4bit"):
        _try_out(model, quantization, device)
    else:
        model.to(device)
    # Loaded as they are in the file, weights are views of it, which may be paged out or replaced.
    is_view = device == "cpu" and any(FILE_DTYPES.get(kind) == dtype for kind in source.weights.dtypes)
    model.requires_grad_(False)
    if is_view:
        own_memory(model)
    if quantization == "int8":
        quantize_linear_layers(model)
    return model.eval()


def _placed(device: str, dtype: torch.dtype, quantization: str | None) -> dict[str, Any]:
    """Arguments that bring the weights straight to their device, without a copy on this side."""
    if quantization in ("bnb-8bit", "bnb-4bit"):
        return {"quantization_config": _bitsandbytes(quantization, dtype), "device_map": {"": device}}
    return {} if device == "cpu" else {"device_map": {"": device}}


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    # It warns at every layer of every step that it casts to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantization == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _try_out(model: PreTrainedModel, quantization: str, device: str) -> None:
    """bitsandbytes finds out only when it runs that it cannot (shapes, device); it also packs its weights then."""
    try:
        with torch.inference_mode():
            model(torch.tensor([[0, 1]], device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"{quantization} does not work for this model on {device} ({reason}). Choose another quantization or none."
        ) from error


def _require_complete(info: dict[str, Any]) -> None:
    """transformers fills absent weights with random numbers and only warns."""
    absent = sorted(info["missing_keys"]) + sorted(str(entry) for entry in info["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{len(absent)} weights are missing or of another shape, {absent[0]} for one: these files do not hold a"
            " whole language model. Download or copy them again, or choose another model."
        )


def _explained(error: Exception, name: str, device: str) -> UqchatError:
    if isinstance(error, UqchatError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return ModelError(
            f"Not enough memory on {device} for {name}. Unload the current model first, or choose a smaller one or"
            " quantization bnb-4bit."
        )
    if isinstance(error, ImportError):
        return ModelError(f"{name} needs a package that is not installed: {text[:300]}")
    if "trust_remote_code" in text:
        return ModelError(
            f"{name} runs Python code that it brings along, which is off. Whoever runs the app can allow it with"
            " UQCHAT_TRUST_REMOTE_CODE=1, after reading that code."
        )
    if any(part in text for part in ("does not recognize this architecture", "Unrecognized", "GGUF model with")):
        return ModelError(
            f"{name} is of a kind that cannot chat here (unsupported architecture): {text[:200]}. Choose a decoder"
            " language model that transformers supports."
        )
    return ModelError(f"{name} could not be loaded ({type(error).__name__}: {text[:300]}). Its files may be broken.")


def context_window(config: PretrainedConfig) -> tuple[int, tuple[str, ...]]:
    """Tokens that fit into the model, from the variants of its name; with a note where the config does not say."""
    values = config.get_text_config().to_dict()
    for name in WINDOW_NAMES:
        value = values.get(name)
        if isinstance(value, int) and value > 0:
            return value, ()
    return DEFAULT_WINDOW, (f"the model does not state its context window: {DEFAULT_WINDOW:,} tokens are assumed",)


def _ensure_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    if tokenizer.chat_template:
        return ()
    ids = tokenizer("a").input_ids
    has_start = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if has_start else "") + PLAIN_TEMPLATE
    return ("the model has no chat template: a plain one is used (User: ... Assistant: ...)",)
