"""Benchmarks against other programs: two processes understand each other, and our numbers are held against theirs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import llama_cpp, lm_polygraph
from benchmarks.peer import peer, timed
from tests.tiny import tiny_model
from uqchat.language_model import LanguageModel

SCRIPTS = Path(llama_cpp.__file__).parent
ECHO = """
import json, os, sys
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order.get("fall"):
        sys.exit(1)
    seen = {"saw": sys.argv[1:], "is_offline": os.environ["HF_HUB_OFFLINE"]}
    print(json.dumps({"tokens": order["count"], "seconds": 0.5, **seen}), flush=True)
"""
FAKE_LLAMA = """
class Llama:
    def __init__(self, path, **options):
        self.keeps_logits = options["logits_all"]
    def reset(self):
        pass
    def generate(self, prompt, temp, repeat_penalty):
        assert prompt == [1, 2, 3] and not self.keeps_logits
        while True:
            yield 7
    def create_completion(self, prompt, max_tokens, logprobs, **options):
        assert logprobs == 5 and self.keeps_logits
        return {"usage": {"completion_tokens": max_tokens - 1}}
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_an_order_goes_there_and_its_answer_comes_back(tmp_path: Path) -> None:
    script = write(tmp_path / "echo.py", ECHO)
    with peer(sys.executable, script, ["a folder", "2"], "nothing") as ask:
        assert [ask({"count": n})["tokens"] for n in (3, 5)] == [3, 5]
        assert ask({"count": 1})["saw"] == ["a folder", "2"] and ask({"count": 1})["is_offline"] == "1"
        assert timed(ask, {"count": 64})() == (64, 0.5)


def test_a_peer_that_cannot_start_or_ends_says_what_to_do(tmp_path: Path) -> None:
    script = write(tmp_path / "absent.py", "import a_package_that_is_not_there")
    with (
        pytest.raises(RuntimeError, match=r"absent\.py ended at once: is the-package installed there\?"),
        peer(sys.executable, script, [], "the-package"),
    ):
        pass
    script = write(tmp_path / "echo.py", ECHO)
    with pytest.raises(RuntimeError, match="echo.py ended over"), peer(sys.executable, script, [], "nothing") as ask:
        ask({"fall": True})


def test_the_other_side_of_llama_cpp_serves_both_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own script, with a package of that name in place of llama.cpp's."""
    write(tmp_path / "llama_cpp.py", FAKE_LLAMA)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    arguments = ["file.gguf", "1", json.dumps([1, 2, 3])]
    with peer(sys.executable, SCRIPTS / "llama_cpp_peer.py", arguments, "llama-cpp-python") as ask:
        answers = [ask({"mode": mode, "count": 9}) for mode in llama_cpp.MODES]
    assert [answer["tokens"] for answer in answers] == [9, 8] and all(answer["seconds"] > 0 for answer in answers)


@pytest.mark.parametrize("benchmark", [llama_cpp, lm_polygraph])
def test_without_its_peer_a_benchmark_says_what_it_needs(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv(benchmark.VARIABLE, raising=False)
    benchmark.main(1)
    assert f"skipped: it needs {benchmark.VARIABLE}=/path/to/python that has" in capsys.readouterr().out


def test_peers_are_run_with_full_or_by_name_and_helpers_are_no_benchmarks() -> None:
    assert {"llama_cpp", "lm_polygraph"} <= set(command.SLOW) <= set(command.NAMES)
    assert not set(command.HELPERS) & set(command.NAMES)
    assert all((SCRIPTS / f"{name}.py").is_file() for name in (*command.HELPERS, *command.NAMES))


# ---- the numbers


class Polygraph:
    """What lm-polygraph would answer about a model, by transformers' `generate` and one forward of each answer."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.orders = model, []

    def __call__(self, order: dict[str, Any]) -> dict[str, Any]:
        self.orders.append(order)
        found = [self.scored(question, order["count"]) for question in order["questions"]]
        ids, entropy, surprise = map(list, zip(*found, strict=True))
        tokens = sum(map(len, ids))
        return {"tokens": tokens, "seconds": 0.25, "ids": ids, "entropy": entropy, "surprise": surprise}

    def scored(self, question: str, count: int) -> tuple[list[int], float, float]:
        messages = [{"role": "user", "content": question}]
        prompt = self.model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        with torch.inference_mode():
            whole = self.model.model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
            log_probs = self.model.model(whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        ids = whole[0, len(prompt) :]
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        return ids.tolist(), float(entropy), -float(log_probs.gather(1, ids[:, None]).sum())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    monkeypatch.setattr(lm_polygraph, "COUNT", 12)
    monkeypatch.setattr(lm_polygraph, "QUESTIONS", ("hello", "why is the sky blue?", "a"))
    return lm_polygraph.QUESTIONS


def test_our_mean_entropy_is_that_of_the_definition_and_a_difference_is_missed(few: Sequence[str]) -> None:
    model = LanguageModel(tiny_model())
    theirs = Polygraph(model)
    row = lm_polygraph.check(model, theirs)
    assert row.is_met and row.bar == "within 0.001" and -1e-4 < row.low <= row.high < 1e-4
    assert "3 of 3 answers the same" in row.detail and theirs.orders[0]["dtype"] == "float32"
    own = lm_polygraph.ours(model, few)
    assert all(len(scored.ids) == 12 and scored.surprise > 0 for scored in own)
    other = [*own[1:], replace(own[0], entropy=own[0].entropy + 0.002)]
    assert not lm_polygraph.agreement([*own[1:], own[0]], other).is_met
    row = lm_polygraph.agreement(own, [*own[:2], replace(own[2], ids=own[1].ids)])
    assert not row.is_met and "2 of 3 answers the same" in row.detail
    model.close()


def test_both_sides_are_timed_on_the_same_questions_in_the_same_format(few: Sequence[str]) -> None:
    model = LanguageModel(tiny_model())
    theirs = Polygraph(model)
    rows = lm_polygraph.speed(model, theirs, repeats=1)
    assert {(o["way"], len(o["questions"]), o["dtype"], o["count"]) for o in theirs.orders} == {
        ("documented", 1, "float32", 12),
        ("lean", 1, "float32", 12),
        ("lean", 3, "float32", 12),
    }
    assert [(row.arm, row.baseline) for row in rows] == [
        ("ours", "lm-polygraph"),
        ("ours", "lm-polygraph, lean"),
        ("ours, eight", "lm-polygraph, lean, eight"),
    ]
    assert "lm-polygraph, lean, eight 144.0 tokens/s" in rows[2].detail  # 3 answers of 12 in a quarter of a second
    model.close()
