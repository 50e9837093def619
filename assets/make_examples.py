"""Writes assets/examples.json from the embedded model: the stored answer and the questions of the page's first minute.

`python assets/make_examples.py` fails if a question no longer belongs to its group, in float32 or in bfloat16.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import uqchat  # noqa: E402  found through the line above
from uqchat.config import GenerationConfig  # noqa: E402
from uqchat.host_estimators import offers_of  # noqa: E402
from uqchat.paths import ASSETS  # noqa: E402

EXAMPLE = "What is the capital of Bhutan?"
RIGHT = {
    "What is the capital of Australia?": "Canberra",
    "What is the capital of Canada?": "Ottawa",
    "What is the chemical symbol for gold?": "Au",
}
WRONG = {
    "What is the capital of Brazil?": "Bras",
    "What is the capital of Turkey?": "Ankara",
    "What is 17 times 23?": "391",
}
UNKNOWABLE = (
    "What is my name?",
    "Who is the mayor of my town?",
    "Who won the football match in my village last Sunday?",
)


def main() -> None:
    """Check every question, then write the file."""
    for dtype in ("bfloat16", "float32"):
        model = uqchat.load(dtype=dtype)
        for question, answer in (RIGHT | WRONG).items():
            text = model.answer(question, generation=GenerationConfig(max_new_tokens=60)).text
            if (answer in text) != (question in RIGHT):
                sys.exit(f"{question} is in the wrong group ({dtype}): {text}")
            print(f"{dtype}: {question} {text!r}")
        cheap = [offer.name for offer in offers_of(model) if not offer.refusal and not offer.is_costly]
        example = model.answer(EXAMPLE, cheap)  # by all that every answer of the page is scored by
        print(f"{dtype}: {EXAMPLE} {example.text!r}")
        model.close()
    data = {
        "model": f"{model.name} ({model.info.dtype})",
        "question": EXAMPLE,
        "answer": example.to_json(),
        "questions": {
            "It gets these right": list(RIGHT),
            "It gets these wrong": list(WRONG),
            "It cannot know these": list(UNKNOWABLE),
        },
    }
    text = json.dumps(data, ensure_ascii=False, indent=0)
    (ASSETS / "examples.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
