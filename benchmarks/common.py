"""Interleaved timing of two or more arms in one process, as ratios; results as JSON and as the README's table."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import uqchat
from uqchat.config import GenerationConfig
from uqchat.engine.adapters import Adapter, LowRank, linear_size
from uqchat.engine.backend import Request
from uqchat.engine.decode import Engine
from uqchat.language_model import LanguageModel
from uqchat.placement import choose_dtype
from uqchat.teams import in_a_thread

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THREADS = torch.get_num_threads()
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` of the arm to its baseline, median over paired repeats."""

    claim: str
    arm: str
    baseline: str
    ratio: float
    low: float
    high: float
    bar: str
    is_met: bool
    detail: str


Arm = Callable[[], float | tuple[float, float]]


def interleave(arms: dict[str, Arm], repeats: int) -> dict[str, list[float]]:
    """Work per second of every arm, `repeats` times, order reversed every other time, after one warm-up each.

    Each begins without threads of another one's: see `uqchat.teams`.

    Args:
        arms: each runs once and returns how much work it did (tokens, say); with the seconds, if it times itself.
    """
    for run in arms.values():
        _by_itself(run)
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):
        order = list(arms) if repeat % 2 else list(reversed(arms))
        for name in order:
            start = time.perf_counter()
            result = _by_itself(arms[name])
            work, seconds = result if isinstance(result, tuple) else (result, time.perf_counter() - start)
            rates[name].append(work / seconds)
    return rates


def _by_itself(arm: Arm) -> Any:
    """What an arm gives. Its thread ends with it, as do those in which models wrote answers for it; what is made for
    all arms is made in a thread without a team, for that one stays."""

    def run() -> Any:
        torch.set_num_threads(THREADS)
        return arm()

    torch.set_num_threads(1)
    try:
        return in_a_thread(run)
    finally:
        for model in [one for one in gc.get_objects() if type(one) is LanguageModel]:
            worker, model._worker = model._worker, None
            if worker:
                worker.close()


def compare(claim: str, rates: dict[str, list[float]], arm: str, baseline: str, bar: float, unit: str) -> Row:
    """The paired ratios of two arms against a bar that they should reach or exceed."""
    ratios = sorted(a / b for a, b in zip(rates[arm], rates[baseline], strict=True))
    median = statistics.median(ratios)
    detail = ", ".join(f"{name} {statistics.median(values):.1f} {unit}" for name, values in rates.items())
    return Row(claim, arm, baseline, median, ratios[0], ratios[-1], f">= {bar:g}", median >= bar, detail)


def cost(claim: str, rates: dict[str, list[float]], arm: str, baseline: str, bar: float) -> Row:
    """The paired ratios of two arms' times for the same work against a bar that they should stay under."""
    ratios = sorted(b / a for a, b in zip(rates[arm], rates[baseline], strict=True))
    median = statistics.median(ratios)
    detail = ", ".join(f"{name} {1000 / statistics.median(rates[name]):.1f} ms" for name in (arm, baseline))
    return Row(claim, arm, baseline, median, ratios[0], ratios[-1], f"<= {bar:g}", median <= bar, detail)


def save(name: str, rows: list[Row], settings: dict[str, object]) -> None:
    """Write benchmarks/results/<name>.json and print the rows."""
    import transformers

    machine = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "is_bfloat16_native": is_bfloat16_native(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    data = {"rows": [asdict(row) for row in rows], "settings": settings, "machine": machine}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    for row in rows:
        met = "met" if row.is_met else "MISSED"
        print(f"{row.claim}: {row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}] bar {row.bar} {met} ({row.detail})")


def table() -> str:
    """All stored results as a Markdown table."""
    lines = ["| claim | ratio (lowest to highest) | bar | met | medians |", "| --- | --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text())
        for row in data["rows"]:
            digits = 4 if row["bar"].startswith("within") else 2  # a difference, not a ratio
            spread = " ".join(f"{row[key]:.{digits}f}" for key in ("ratio", "low", "high")).replace(" ", " (", 1)
            spread = " to ".join(spread.rsplit(" ", 1)) + ")"
            met = "yes" if row["is_met"] else "no"
            machine = data["machine"]
            other = "" if machine.get("is_bfloat16_native", True) else f" [{machine['instructions']} only, float32]"
            lines.append(f"| {row['claim']}{other} | {spread} | {row['bar']} | {met} | {row['detail']} |")
    return "\n".join(lines)


def update_readme() -> None:
    """Put the table between the README's marks."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        readme.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}")


def is_bfloat16_native() -> bool:
    """Whether this CPU multiplies bfloat16 itself. Elsewhere the product, and so the benchmarks, run in float32."""
    return choose_dtype(None, "cpu") == torch.bfloat16


_loaded: dict[str, LanguageModel] = {}


def load_endless(name: str = "embedded") -> LanguageModel:
    """A model whose answers never end by themselves, so that every arm gives the same number of tokens.

    In the format that this CPU is fast in. One for all benchmarks of a process, unless one has closed it; nothing
    of an earlier one is left in it.
    """
    model = _loaded.get(name)
    if model is None or model._is_closed:
        model = _loaded[name] = uqchat.load(name)
        model.engine.vocabulary.end_ids = frozenset()
    model.engine.lineup.prefixes.clear()
    for adapter in model.engine.adapters.names:
        model.engine.adapters.remove(adapter)
    return model


def prompt_of(model: LanguageModel, length: int, first: str = "Tell me about the lighthouse.") -> tuple[int, ...]:
    """Ids of a user's message, with as much text as makes `length` of them."""
    words = first + " The keeper wrote down what he saw every night." * (length // 8 + 2)
    while True:
        ids = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": words}], add_generation_prompt=True, return_dict=False
        )
        if len(ids) <= length:
            return tuple(ids)
        words = words[: -max(1, len(ids) - length)]


def request_of(prompt: tuple[int, ...], count: int, **options: Any) -> Request:
    """A greedy answer of `count` tokens."""
    return Request(prompt, GenerationConfig(max_new_tokens=count), **options)


def decode_steps(engine: Engine, requests: Sequence[Request], count: int) -> tuple[float, float]:
    """`count` steps of all requests together, their prompts read before the clock starts: (steps, seconds)."""
    engine.lineup.prefixes.clear()
    keys = [engine.add(request) for request in requests]
    while engine.lineup.waiting or engine.lineup.batch.reading:
        engine.step()
    start = time.perf_counter()
    for _ in range(count):
        engine.step()
    seconds = time.perf_counter() - start
    rows = sum(1 + len(request.companions) for request in requests)
    assert len(engine.lineup.batch) == rows, "all rows must run during all steps"
    for key in keys:
        engine.remove(key)
    return count, seconds


def random_lora(model: torch.nn.Module, name: str, rank: int, seed: int) -> Adapter:
    """A small random low-rank change of every query and value projection."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Any] = {}
    for layer, module in model.named_modules():
        if layer.endswith(("q_proj", "v_proj")):
            rows, columns = linear_size(module)
            a, b = (torch.randn(*shape, generator=generator) * 0.02 for shape in ((rank, columns), (rows, rank)))
            deltas[layer] = LowRank(a, b)
    return Adapter(name, deltas)
