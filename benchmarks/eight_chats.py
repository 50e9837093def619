"""Eight people ask, a tenth of a second apart, and share one batch: all tokens per second against one after another."""

from __future__ import annotations

import threading
import time

import torch

from benchmarks.common import compare, interleave, load_endless, save
from uqchat.config import GenerationConfig

NEW, APART, BAR = 48, 0.1, 7.0
IN_TURN = 4  # chats that are answered one after another: as many tokens per second as eight of them
TOPICS = ("lighthouses", "bread", "the moon", "trains", "rivers of Asia", "old clocks", "bees and honey", "glass")
PROMPTS = [f"Tell me about {topic}: where it began, who took part, and what came of it later on." for topic in TOPICS]


def main(repeats: int) -> None:
    """`generate` of transformers, and our own engine, answer one chat after another."""
    model = load_endless()
    config = GenerationConfig(max_new_tokens=NEW)
    inputs = [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        for prompt in PROMPTS
    ]

    def answer(prompt: str) -> None:
        assert len(model.answer(prompt, "entropy", config).tokens) == NEW

    def together() -> float:
        model.engine.lineup.prefixes.clear()
        threads = [threading.Thread(target=answer, args=(prompt,)) for prompt in PROMPTS]
        for thread in threads:
            thread.start()
            time.sleep(APART)
        for thread in threads:
            thread.join()
        return NEW * len(PROMPTS)

    def in_turn() -> float:
        model.engine.lineup.prefixes.clear()
        for prompt in PROMPTS[:IN_TURN]:
            answer(prompt)
        return NEW * IN_TURN

    def generate() -> float:
        options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
        for ids in inputs[:IN_TURN]:
            model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return NEW * IN_TURN

    rates = interleave({"generate": generate, "in turn": in_turn, "eight chats": together}, repeats)
    claim = f"eight chats, {NEW} tokens each, arriving {APART} s apart, against "
    rows = [
        compare(claim + "`generate` one after another", rates, "eight chats", "generate", BAR, "tokens/s"),
        compare(claim + "our own one after another", rates, "eight chats", "in turn", 1.0, "tokens/s"),
    ]
    save(
        "eight_chats",
        rows,
        {"prompts": PROMPTS, "in turn": IN_TURN, "repeats": repeats, "forward": model.engine.forward_note},
    )


if __name__ == "__main__":
    main(3)
