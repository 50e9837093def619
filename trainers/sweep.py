"""Chooses a trainer's settings by sets never seen: each variant is trained without one set and judged on that set.

`python -m trainers sweep --run-dir D --plan trainers/sweeps/probe.json --caches '["a", "b"]'`. A plan is a JSON object:
"trainer" ("probe", "uq-head"), "common" settings, "variants" (name -> settings), "baselines" (the same, never chosen).
Judged are answers of the calibration split, so neither training rows nor evaluation files choose anything; the last
weights count, so that the judged set does not choose the epoch either. Every run is kept, so a sweep that was killed
goes on with the next one. Knows no trainer's inside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from trainers.answers import write_whole
from trainers.common import Run, add_run_arguments, build_settings, read_settings, run_trainer
from trainers.run_folder import RESULT, write_json
from trainers.training_set import DataConfig, TrainingSet, has_answer_label, macro_auroc, read_training_set
from uqchat.errors import InputError

MODULES = {"probe": "trainers.probe", "uq-head": "trainers.uq_head"}
KEYS = {"trainer", "common", "variants", "baselines"}
TABLE, CHOICE = "sweep.md", "choice.json"
UNTRAINED = ("mean -log p", "mean entropy", "max -log p", "max entropy")
METRIC = "validation auroc "
Places = dict[str, float]  # "<set> <style>" -> AUROC


@dataclass(frozen=True)
class TrainConfig:
    """What is compared, and on which data."""

    plan: str
    """A JSON file, see the module."""
    caches: tuple[str, ...] = ()
    """Folders of cached features, training and calibration splits."""
    sets: tuple[str, ...] = ()
    """Left out in turn; none named is every set with right and wrong answers."""
    judge_splits: tuple[str, ...] = ("calibration",)
    """Splits whose answers judge."""


@dataclass(frozen=True)
class Plan:
    """The file's content."""

    trainer: str
    common: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    baselines: Mapping[str, Mapping[str, Any]]

    @property
    def everything(self) -> dict[str, dict[str, Any]]:
        """Settings of each variant and baseline."""
        return {name: {**self.common, **own} for name, own in {**self.baselines, **self.variants}.items()}


def read_plan(path: str | Path) -> Plan:
    """A plan from its file. Raises InputError: unreadable, unknown keys, an unknown trainer, no variant."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict) or not {"trainer", "variants"} <= set(raw) <= KEYS:
        raise InputError(f"{path} must be an object with trainer and variants, and may have {', '.join(sorted(KEYS))}.")
    if raw["trainer"] not in MODULES:
        raise InputError(f"{path}: unknown trainer {raw['trainer']!r}. Known: {', '.join(MODULES)}.")
    plan = Plan(raw["trainer"], raw.get("common", {}), raw["variants"], raw.get("baselines", {}))
    twice = set(plan.variants) & set(plan.baselines)
    if not plan.variants or twice or len({slug(name) for name in plan.everything}) < len(plan.everything):
        raise InputError(f"{path} needs variants and baselines whose names differ, in letters and digits.")
    return plan


def slug(name: str) -> str:
    """A variant's name as that of its folder."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def train(config: TrainConfig, run: Run) -> Mapping[str, Any] | None:
    """Run what is not there yet; the table and the choice, or None when the run was asked to stop.

    Raises:
        UqchatError: see `read_plan` and the trainer; one set only.
    """
    plan = read_plan(config.plan)
    judged = read_training_set(DataConfig(config.caches, splits=config.judge_splits, sets=config.sets), run.log)
    sets = list(config.sets) or [name for name in sorted({row.set for row in judged.rows}) if _has_both(judged, name)]
    if len(sets) < 2:
        raise InputError(f"A sweep leaves out one set of several; these caches hold {', '.join(sets) or 'none'}.")
    found: dict[str, Places] = {}
    for number, (name, settings) in enumerate(plan.everything.items()):
        found[name] = {}
        for place, left_out in enumerate(sets):
            run.progress(number * len(sets) + place, len(plan.everything) * len(sets), f"{name}, without {left_out}")
            if run.must_stop:
                return None
            places = _judge(plan.trainer, settings, left_out, config, run.path / slug(name) / left_out)
            if places is None:
                return None
            found[name] |= places
        run.log(f"{name}: {mean_over_sets(found[name]):.4f}")
    table = {**untrained(judged.subset(i for i, row in enumerate(judged.rows) if row.set in sets)), **found}
    best = max(plan.variants, key=lambda name: mean_over_sets(found[name]))
    if run.is_main:
        write_whole(run.path / TABLE, [markdown(table, best)])
        write_json(run.path / CHOICE, plan.everything[best])
    return {"choice": best, "folder": slug(best), "settings": plan.everything[best], "auroc": table}


def _judge(
    trainer: str, settings: Mapping[str, Any], left_out: str, config: TrainConfig, folder: Path
) -> Places | None:
    """AUROC on the set left out, by style, from the folder of an earlier run or by training now."""
    if not (folder / RESULT).is_file():
        module = importlib.import_module(MODULES[trainer])
        data = {"caches": config.caches, "judged": (left_out,), "judge_splits": config.judge_splits}
        own = build_settings(module.TrainConfig, {**settings, **data, "keep": "last", "patience": 0})
        with Run(folder, json.loads(json.dumps(asdict(own), default=str)), resume=True) as inner:
            result = module.train(own, inner)
            if result is None:
                inner.stopped()
                return None
            inner.finish(result)
    metrics = json.loads((folder / RESULT).read_text(encoding="utf-8"))["metrics"]
    return {key.removeprefix(METRIC): value for key, value in metrics.items() if key.startswith(METRIC)}


def mean_over_sets(places: Places) -> float:
    """Mean over sets of the mean over a set's styles."""
    return fmean(by_set(places).values())


def by_set(places: Places) -> dict[str, float]:
    """Mean over a set's styles."""
    names = dict.fromkeys(place.rpartition(" ")[0] for place in places)
    return {name: fmean(v for place, v in places.items() if place.rpartition(" ")[0] == name) for name in names}


def untrained(data: TrainingSet) -> dict[str, Places]:
    """What mean and largest -log p and entropy of the answers' tokens reach on the same answers."""
    confidence = [data.confidence(i) for i in range(len(data))]
    scores = torch.stack([torch.cat([own.mean(0), own.max(0).values]) for own in confidence])
    labels, groups = data.is_error().tolist(), data.groups()
    found = {}
    for column, name in enumerate(UNTRAINED):
        places = macro_auroc(scores[:, column].tolist(), labels, groups)
        found[name] = {key.removeprefix("auroc "): value for key, value in places.items() if key != "auroc"}
    return found


def markdown(table: Mapping[str, Places], best: str) -> str:
    """A row for each variant, a column for each set (mean over styles), the chosen one in bold."""
    sets = sorted({name for places in table.values() for name in by_set(places)})
    lines = ["| variant | mean | " + " | ".join(sets) + " |", "| --- |" + " --- |" * (len(sets) + 1)]
    for name, places in sorted(table.items(), key=lambda item: -mean_over_sets(item[1])):
        own = by_set(places)
        cells = [f"{mean_over_sets(places):.4f}", *(f"{own[one]:.4f}" if one in own else "–" for one in sets)]
        lines.append(f"| {f'**{name}**' if name == best else name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _has_both(data: TrainingSet, name: str) -> bool:
    return len({row.is_error for row in data.rows if row.set == name and has_answer_label(row)}) == 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainers sweep`."""
    add_run_arguments(parser, TrainConfig)


def main(args: argparse.Namespace) -> int:
    """Begin or resume a sweep. Raises what `train` raises."""
    return run_trainer("sweep", args, read_settings(TrainConfig, args), train)
