"""`uqchat models` and `uqchat estimators`: what there is. Loads no model and asks no server."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from uqchat.config import read_config

GIGABYTE = 1e9


def run_models(args: argparse.Namespace, out: TextIO) -> None:
    """List the models of the page's drop-down and every Hub model that is already on this disk."""
    from uqchat.catalogue import known_models
    from uqchat.embedded import FOLDER_NAME, is_complete

    cached = cached_models()
    here = {entry["name"] for entry in cached}
    if is_complete(read_config().cache_dir / FOLDER_NAME):
        here.add("embedded")
    known = [{**asdict(choice), "is_here": choice.name in here} for choice in known_models()]
    if args.json:
        out.write(json.dumps({"known": known, "cached": cached}, ensure_ascii=False) + "\n")
        return
    rows = [(c["name"], f"{c['size_gb']:.1f} GB", c["license"], _place(c), c["note"]) for c in known]
    others = [(c["name"], f"{c['size_gb']:.1f} GB", "", "here", "") for c in cached if c["name"] not in _names(known)]
    _write_table(("model", "size", "licence", "", "note"), rows + others, out)
    out.write("\nAny other Hub id, folder or GGUF file works too: --model NAME|FOLDER|FILE.gguf\n")


def cached_models() -> list[dict[str, Any]]:
    """Models in the Hub's cache on this disk: name, size_gb, path."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        {"name": repo.repo_id, "size_gb": round(repo.size_on_disk / GIGABYTE, 3), "path": str(repo.repo_path)}
        for repo in repos
        if repo.repo_type == "model"
    ]
    return sorted(found, key=lambda entry: entry["name"])


def run_estimators(args: argparse.Namespace, out: TextIO) -> None:
    """List the estimators: what one score covers, its unit, its map to risk and what it needs; then trained ones."""
    from uqchat.artifact_folders import every_artifact
    from uqchat.estimators import ESTIMATORS

    found = [
        {
            "name": estimator.name,
            "label": estimator.label,
            "level": estimator.level,
            "trainable": estimator.trainable,
            "unit": estimator.unit,
            "value_map": estimator.value_map,
            "needs": asdict(estimator.needs),
            "cost": estimator.cost,
        }
        for estimator in (kind() for kind in ESTIMATORS)
    ]
    trained = [
        {"name": one.name, "label": one.label, "base_model": one.origin.base_model, "folder": str(one.folder)}
        for one in every_artifact()
    ]
    if args.json:
        out.write(json.dumps({"estimators": found, "trained": trained}, ensure_ascii=False) + "\n")
        return
    rows = [
        (e["name"], e["label"], e["level"], e["unit"], e["value_map"], e["cost"] or _needs(e["needs"])) for e in found
    ]
    _write_table(("name", "label", "level", "raw unit", "risk (uncalibrated)", "needs"), rows, out)
    if trained:
        out.write("\n")
        _write_table(("trained", "label", "for", "folder"), [tuple(one.values()) for one in trained], out)
    out.write("\nThe folder or Hub id of a trained estimator works too: --estimator NAME|FOLDER|ORGANISATION/NAME\n")


def _place(choice: dict[str, Any]) -> str:
    return "here" if choice["is_here"] else "to download"


def _names(entries: Sequence[dict[str, Any]]) -> set[str]:
    return {entry["name"] for entry in entries}


def _needs(needs: dict[str, Any]) -> str:
    return (
        ", ".join(name if value is True else f"{name} {value}" for name, value in needs.items() if value) or "nothing"
    )


def _write_table(head: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        out.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
