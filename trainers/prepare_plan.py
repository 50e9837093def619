"""What `prepare` is going to do: commands of the other trainers in order, with rows, time, memory and disk of each.

Knows no trainer's inside; its numbers are estimates from the model's measured speed and the sizes of what is written.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainers.capture import default_layers
from trainers.data import MAX_NEW_TOKENS
from trainers.questions import read_questions
from uqchat.errors import InputError

Preset = Literal["quick", "standard", "full"]
PRESETS: tuple[Preset, ...] = ("quick", "standard", "full")
QUICK_QUESTIONS = 300
QUICK_SHARE = 0.95  # of the quick preset's questions, which only calibrate
QUERY_ROWS = {"standard": 1500, "full": 6000}
QUERY_TOKENS = 90  # prompt, answer and query together, about
QUERY_COST = 3.0  # forwards that one step of training costs
LINES_PER_SECOND = 1500  # labelled, about
REPLAYED_PER_SECOND = 40  # answers scored from a cache, about
EPOCHS_SECONDS = {"probe": 0.02, "uq_head": 0.12}  # of one answer, all epochs together, about
PROMPT_TOKENS = 45
UNUSED = 0.6  # of the tokens that an answer may take, what it takes on average


@dataclass(frozen=True)
class Source:
    """Questions of one set: a file to train and calibrate with, and one that only evaluates, where there is one."""

    name: str
    train: Path
    eval: Path | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What the plan must know of the language model."""

    num_layers: int
    hidden_size: int
    num_heads: int
    weight_bytes: float
    has_attention: bool
    tokens_per_second: float
    """Written, in the engine's batches, prompts counted in."""
    read_per_second: float
    """Read in one forward."""
    untrained: tuple[str, ...]
    """Names of the untrained estimators that this model can serve."""


@dataclass(frozen=True)
class Step:
    """One command, and the file that is there when it is done."""

    name: str
    command: tuple[str, ...]
    proof: Path
    rows: int = 0
    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Request:
    """What was asked for: model and its options for every command, sources, folders."""

    model_options: tuple[str, ...]
    preset: Preset
    sources: tuple[Source, ...]
    work: Path
    estimators: Path
    """Folder of this model's estimators."""
    is_found_by_name: bool = True
    """Whether the app looks into that folder, so that names are enough."""
    with_query: bool = True
    seed: int = 0


def make_plan(request: Request, facts: ModelFacts) -> list[Step]:
    """All steps in order.

    Raises:
        InputError: an unknown preset, or a file of questions that cannot be read.
    """
    if request.preset not in PRESETS:
        raise InputError(f"Unknown preset {request.preset!r}. Known: {', '.join(PRESETS)}.")
    return _Planner(request, facts).steps()


class _Planner:
    """One call of `make_plan`."""

    def __init__(self, request: Request, facts: ModelFacts) -> None:
        self.request, self.facts = request, facts
        self.styles = {"quick": ("page",), "standard": ("page", "short"), "full": ("page", "short", "sentence")}[
            request.preset
        ]
        self.folders: dict[str, list[Path]] = {"train": [], "calibration": [], "eval": []}
        self.rows = {"train": 0, "calibration": 0, "eval": 0}

    def steps(self) -> list[Step]:
        """Data first, then what is fitted to it, then the numbers."""
        is_quick = self.request.preset == "quick"
        found = self._data(is_quick)
        found.append(self._label())
        found.append(self._calibrate("untrained", self.facts.untrained))
        if is_quick:
            return found
        found += self._trainers()
        trained = ("probe", "uq_head", "combination") if self.facts.has_attention else ("probe",)
        named = trained if self.request.is_found_by_name else [str(self.request.estimators / name) for name in trained]
        found.append(self._calibrate("all", (*self.facts.untrained, *named), is_report=True))
        if self.request.with_query:
            found.append(self._query())
            found.append(self._query_calibrate())
        if self.folders["eval"]:
            found.append(self._report())
        return found

    # ---- data

    def _data(self, is_quick: bool) -> list[Step]:
        steps = []
        for source in self.request.sources:
            count = len(read_questions(source.train, source.name))
            if is_quick:
                asked = min(count, max(1, QUICK_QUESTIONS // len(self.request.sources)))
                more = ("--calibration", str(QUICK_SHARE), "--limit", str(asked))
                steps.append(self._generate(source, source.train, "calibration", "page", round(asked * 0.95), more))
                continue
            evaluated = len(read_questions(source.eval, source.name)) if source.eval else 0
            for style in self.styles:
                for part, path, rows in (
                    ("train", source.train, round(count * 0.8)),
                    ("calibration", source.train, round(count * 0.2)),
                    ("eval", source.eval, evaluated),
                ):
                    if path is not None:
                        more = ("--samples", "2", "--temperature", "1.0") if self._draws(part) else ()
                        steps.append(self._generate(source, path, part, style, rows * (1 + 2 * bool(more)), more))
        return steps

    def _draws(self, part: str) -> bool:
        return self.request.preset == "full" and part == "train"

    def _generate(
        self, source: Source, file: Path, part: str, style: str, rows: int, more: tuple[str, ...] = ()
    ) -> Step:
        folder = self.request.work / f"{source.name}-{part}-{style}"
        self.folders[part].append(folder)
        self.rows[part] += rows
        command = ("data", "generate", *self.request.model_options, "--set", source.name, "--file", str(file))
        command += ("--split", part, "--style", style, "--seed", str(self.request.seed), "--out", str(folder), *more)
        command += () if self.facts.has_attention else ("--lags", "0")
        tokens = rows * MAX_NEW_TOKENS[style] * UNUSED
        seconds = tokens / self.facts.tokens_per_second + rows * PROMPT_TOKENS / self.facts.read_per_second
        memory = self.facts.weight_bytes + 5e8
        return Step(folder.name, command, folder / "cache.json", rows, seconds, memory, tokens * self._token_bytes())

    def _token_bytes(self) -> int:
        facts = self.facts
        hidden = len(default_layers(facts.num_layers)) * facts.hidden_size * 2
        attention = facts.num_layers * facts.num_heads * 3 * 2 if facts.has_attention else 0
        return hidden + attention + 10 * 4 + 12

    def _label(self) -> Step:
        folders = [folder for part in self.folders.values() for folder in part]
        rows = sum(self.rows.values())
        return Step(
            "label",
            ("data", "label", *map(str, folders)),
            folders[-1] / "labels.jsonl",
            rows,
            5 + rows / LINES_PER_SECOND,
        )

    # ---- what is fitted

    def _calibrate(self, name: str, estimators: Sequence[str], is_report: bool = False) -> Step:
        command = ("calibrate", *self.request.model_options, "--caches", *map(str, self.folders["calibration"]))
        command += ("--estimators", ",".join(estimators), "--out", str(self.request.estimators))
        rows, proof = self.rows["calibration"], self.request.estimators / estimators[-1] / "calibration.json"
        if is_report and self.folders["eval"]:
            risks = self.request.work / "risks.jsonl"
            command += ("--report-caches", *map(str, self.folders["eval"]), "--risks", str(risks))
            rows, proof = rows + self.rows["eval"], risks
        seconds = 30 + rows * len(estimators) / REPLAYED_PER_SECOND / 4
        return Step(f"calibrate {name}", command, proof, rows, seconds, self.facts.weight_bytes + 1e9, 1e6)

    def _trainers(self) -> list[Step]:
        layers = default_layers(self.facts.num_layers)
        probe = self._train("probe", "probe", ())
        if not self.facts.has_attention:
            return [probe]  # nothing trained to combine it with
        head = self._train("uq-head", "uq_head", ("--hidden-layers", json.dumps([layers[len(layers) // 2 - 1]])))
        options = ("--splits", "calibration", *self._model_settings())  # of its default members: what ships
        return [probe, head, self._train("combination", "combination", options, part="calibration")]

    def _model_settings(self) -> tuple[str, ...]:
        """`--model` and `--dtype` as settings of a run; a run's other options have their defaults."""
        options = dict(zip(self.request.model_options[::2], self.request.model_options[1::2], strict=True))
        return tuple(text for key in ("--model", "--dtype") if key in options for text in (key, options[key]))

    def _train(self, command: str, name: str, options: tuple[str, ...], part: str = "train") -> Step:
        run = self.request.work / "runs" / name
        caches = json.dumps([str(folder) for folder in self.folders[part]])
        line = (command, "--run-dir", str(run), "--resume", "--caches", caches, *options)
        line += ("--output", str(self.request.estimators / name))
        rows = self.rows[part]
        seconds = 30 + rows * EPOCHS_SECONDS.get(name, 0.05)
        memory = rows * MAX_NEW_TOKENS["page"] * UNUSED * self._token_bytes() * 2 + 1e9
        return Step(f"train {name}", line, run / "result.json", rows, seconds, memory, 5e6)

    def _query(self) -> Step:
        rows = min(QUERY_ROWS[self.request.preset], self.rows["train"])
        options = ("--limit", str(rows), "--max-wrong", "1.5", "--layout", "text", "--epochs", "1")
        options += ("--divergence-on", "own", "--first-layer", str(self.facts.num_layers // 2), *self._model_settings())
        step = self._train("query", "query", options)
        seconds = 60 + rows * QUERY_TOKENS * QUERY_COST / self.facts.read_per_second
        memory = self.facts.weight_bytes * 2 + rows * QUERY_TOKENS * self.facts.hidden_size * 2 + 2e9
        return Step(step.name, step.command, step.proof, rows, seconds, memory, 1e7)

    def _query_calibrate(self) -> Step:
        command = ("query-calibrate", *self.request.model_options, "--query", str(self.request.estimators / "query"))
        command += ("--caches", *map(str, self.folders["calibration"]))
        rows, proof = self.rows["calibration"], self.request.estimators / "query" / "calibration.json"
        if self.folders["eval"]:
            risks = self.request.work / "query_risks.jsonl"
            command += ("--report-caches", *map(str, self.folders["eval"]), "--risks", str(risks))
            command += ("--baselines", ",".join(self.facts.untrained))
            rows, proof = rows + self.rows["eval"], risks
        seconds = 30 + rows * QUERY_TOKENS / self.facts.read_per_second
        return Step("calibrate query", command, proof, rows, seconds, self.facts.weight_bytes + 1e9, 1e6)

    def _report(self) -> Step:
        out = self.request.work / "report"
        files = [str(self.request.work / "risks.jsonl")]
        baseline = ",".join(self.facts.untrained)
        command = ("report", "--risks", *files, "--baseline", baseline, "--out", str(out))
        return Step("report", command, out / "report.md", self.rows["eval"], 60, 1e9, 1e6)


def as_table(steps: Sequence[Step], done: Sequence[bool]) -> str:
    """The plan for people: a line for each step, and the sums."""
    lines = [f"{'step':<34}{'rows':>8}{'minutes':>9}{'memory':>9}{'disk':>9}"]
    for step, is_done in zip(steps, done, strict=True):
        note = "  done" if is_done else ""
        lines.append(_line(step.name, step.rows, step.seconds, step.memory, step.disk) + note)
    left = [step for step, is_done in zip(steps, done, strict=True) if not is_done]
    seconds, disk = sum(s.seconds for s in left), sum(s.disk for s in left)
    lines.append(_line("left to do", 0, seconds, max((s.memory for s in left), default=0.0), disk))
    return "\n".join(lines)


def _line(name: str, rows: int, seconds: float, memory: float, disk: float) -> str:
    shown = f"{rows:,}" if rows else ""
    return f"{name:<34}{shown:>8}{seconds / 60:>9.1f}{memory / 1e9:>6.1f} GB{disk / 1e9:>6.2f} GB"


def command_text(command: Sequence[str]) -> str:
    """A command as it is typed."""
    return shlex.join(["python", "-m", "trainers", *command])
