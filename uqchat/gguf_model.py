"""A GGUF file as an ordinary transformers model with dense weights. Knows neither devices nor caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel


def load_gguf(folder: Path, file: str, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model on the CPU and transformers' loading info; every weight is unpacked to `dtype`.

    Unpacked always, so that a machine with GGUF kernels computes the same as one without, and so that the engine, int8
    and `save_pretrained` meet plain linear layers.
    """
    return AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
    )
