"""Time to the first token of a tenth turn against that of a first turn with the same new text."""

from __future__ import annotations

import time

from benchmarks.common import cost, interleave, load_endless, save
from uqchat.config import GenerationConfig
from uqchat.language_model import LanguageModel

BEHIND, TURNS, BAR = 1500, 9, 1.3
QUESTION = "And what happened to the lighthouse in the winter of that year? Tell me in two sentences."
SENTENCE = "The keeper wrote down what he saw that night. "


def history_of(model: LanguageModel) -> list[dict[str, str]]:
    """Nine turns of at least 1,500 tokens, the last answer missing."""
    for sentences in range(1, BEHIND):
        messages: list[dict[str, str]] = []
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"What happened in year {turn + 1}?"})
            messages.append({"role": "assistant", "content": (SENTENCE * sentences).strip()})
        if len(model.tokenizer.apply_chat_template(messages[:-1], return_dict=False)) >= BEHIND:
            return messages[:-1]
    raise AssertionError("each sentence has at least one token")


def first_token(model: LanguageModel, messages: list[dict[str, str]]) -> float:
    """Seconds from the question to the first token."""
    start = time.perf_counter()
    stream = model.stream(messages, "entropy", GenerationConfig(max_new_tokens=4))
    next(stream)
    seconds = time.perf_counter() - start
    for _ in stream:  # the worker is idle when the next arm begins
        pass
    return seconds


def main(repeats: int) -> None:
    """What lies behind has been answered by the same engine just before."""
    model = load_endless()
    history = history_of(model)
    new = [{"role": "user", "content": QUESTION}]
    length = 0

    def first() -> tuple[float, float]:
        model.engine.lineup.prefixes.clear()
        return 1, first_token(model, new)

    def tenth() -> tuple[float, float]:
        nonlocal length
        model.engine.lineup.prefixes.clear()
        answer = model.answer(history, "entropy", GenerationConfig(max_new_tokens=32))
        length = answer.prompt_tokens + len(answer.tokens)
        return 1, first_token(model, [*history, {"role": "assistant", "content": answer.text}, *new])

    rates = interleave({"first": first, "tenth": tenth}, repeats)
    rows = [cost("first token of a tenth turn against a first turn, time", rates, "tenth", "first", BAR)]
    save("tenth_turn", rows, {"tokens behind": length, "repeats": repeats})


if __name__ == "__main__":
    main(3)
