"""Tiny random models with a byte tokenizer: real transformers code, a few kilobytes, no file."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.mamba import MambaConfig

from uqchat.models import LoadedModel

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id for each byte, plus the end token and the role markers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.5, 3.0, 4.0],
        "original_max_position_embeddings": 64,
    },
}
"""Ways to scale rotary positions; "llama3" has a kind of model of its own."""


def _scaled(kind: str, **kw: Any) -> LlamaConfig:
    return LlamaConfig(
        num_key_value_heads=2,
        intermediate_size=64,
        rope_parameters={"rope_type": kind, "rope_theta": 1000.0, **SCALINGS[kind]},
        **kw,
    )


CONFIGS: dict[str, Any] = {
    "llama": lambda **kw: LlamaConfig(num_key_value_heads=2, intermediate_size=64, **kw),
    "mistral": lambda **kw: MistralConfig(num_key_value_heads=2, intermediate_size=64, sliding_window=8, **kw),
    "mixed": lambda **kw: Qwen2Config(
        num_key_value_heads=2,
        intermediate_size=64,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention"],
        **kw,
    ),
    "llama3": lambda **kw: LlamaConfig(  # scaled rotary positions, biases, tied output layer
        num_key_value_heads=1,
        intermediate_size=64,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        **kw,
    ),
    "multi-head": lambda **kw: LlamaConfig(num_key_value_heads=4, intermediate_size=64, **kw),
    **{name: partial(_scaled, name) for name in SCALINGS},
    "qwen2": lambda **kw: Qwen2Config(num_key_value_heads=2, intermediate_size=64, **kw),
    "qwen3": lambda **kw: Qwen3Config(num_key_value_heads=2, intermediate_size=64, head_dim=12, **kw),
    "neox": lambda **kw: GPTNeoXConfig(intermediate_size=64, **kw),
    "gpt2": lambda **kw: GPT2Config(n_positions=kw.pop("max_position_embeddings"), **kw),
    "mamba": lambda **kw: MambaConfig(state_size=4, **{k: v for k, v in kw.items() if k != "max_position_embeddings"}),
}


def tiny_model(kind: str = "llama", seed: int = 0, window: int = 256) -> LoadedModel:
    """A random float32 model of 2 layers, 4 heads and hidden size 32, sharp enough to have clear argmaxes."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    config = CONFIGS[kind](
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=window,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.dim() > 1:
            parameter.mul_(8)
    return LoadedModel(f"tiny-{kind}", model, tokenizer, "cpu", "float32", None, window)
