"""`stream` with entropy and ten alternatives on every token, against transformers' `generate` of the same dtype.

Both answer the same prompt with the same number of tokens, the time to the first token included.
"""

from __future__ import annotations

import torch

from benchmarks.common import compare, interleave, load_endless, save
from uqchat.config import GenerationConfig
from uqchat.language_model import LanguageModel

PROMPT = "Tell me about the history of the lighthouse and the people who kept it."
LENGTHS = (16, 64, 128)
BAR = 1.4


def arms_for(model: LanguageModel, count: int) -> dict[str, object]:
    """Greedy decoding of exactly `count` tokens, both ways."""
    ids = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    mask = torch.ones_like(ids)

    def generate() -> float:
        out = model.model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        return out.shape[1] - ids.shape[1]

    def stream() -> float:
        config = GenerationConfig(max_new_tokens=count)
        return len({token.index for token in model.stream(PROMPT, ("entropy", "max_prob", "margin"), config)})

    return {"generate": generate, "stream": stream}


def main(repeats: int) -> None:
    """Several lengths."""
    model = load_endless()  # both arms give exactly the same number of tokens
    rows = []
    for count in LENGTHS:
        rates = interleave(arms_for(model, count), repeats)
        claim = f"`stream` with risk against `generate`, {count} new tokens"
        rows.append(compare(claim, rates, "stream", "generate", BAR, "tokens/s"))
    save("stream_vs_generate", rows, {"prompt": PROMPT, "repeats": repeats, "model": "embedded"})


if __name__ == "__main__":
    main(3)
