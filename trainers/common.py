"""What all trainers share in the shell: settings from a file and from arguments, a run that begins, ends or is resumed.

A trainer has a frozen `TrainConfig` and `train(config, run) -> result`, or None where it was asked to stop; here they
become `python -m trainers <name> --run-dir D [--config C] [--resume]`. Knows no trainer.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from trainers.loop import LoopResult, train_loop
from trainers.loop_config import LoopConfig
from trainers.run_folder import Run, TrainingError
from uqchat.errors import InputError

__all__ = ["LoopConfig", "LoopResult", "Run", "TrainingError", "add_run_arguments", "build_settings", "read_settings"]
__all__ += ["run_trainer", "train_loop"]

Config = TypeVar("Config")


def add_run_arguments(parser: argparse.ArgumentParser, config: type, can_finish: bool = False) -> None:
    """`--run-dir`, `--config`, `--resume`, one argument for each setting, and `--finish` for `run_finishable`."""
    if can_finish:
        text = "train no further: finish with what --resume would load"
        parser.add_argument("--finish", action="store_true", help=text)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run: made, or gone on with")
    parser.add_argument("--config", type=Path, help="JSON file with settings; arguments win over it")
    parser.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    for name, default in _settings(config).items():
        text = "needed" if default is MISSING else f"default {json.dumps(default)}"
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=f"set_{name}", metavar="VALUE", help=text, default=argparse.SUPPRESS
        )


def _settings(config: type) -> dict[str, Any]:
    """Settings and their defaults, those of a nested dataclass in a row with the others."""
    hints, found = get_type_hints(config), {}
    for field in fields(config):
        if is_dataclass(hints[field.name]):
            found |= _settings(hints[field.name])
        else:
            found[field.name] = field.default
    return found


def read_settings(config: type[Config], args: argparse.Namespace) -> Config:
    """A trainer's settings from `--config` and from arguments.

    Raises:
        InputError: a file that is no JSON object, an unknown or missing setting, a value of the wrong kind.
    """
    values = _from_file(args.config) if args.config else {}
    values |= {key[4:]: _value(text) for key, text in vars(args).items() if key.startswith("set_")}
    return build_settings(config, values)


def build_settings(config: type[Config], values: Mapping[str, Any]) -> Config:
    """Settings from plain values. Raises InputError: an unknown or missing one, a value of the wrong kind."""
    known = _settings(config)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"Unknown setting {unknown[0]!r}. Known: {', '.join(known)}.")
    missing = [name for name, default in known.items() if default is MISSING and name not in values]
    if missing:
        raise InputError(f"The setting {missing[0]!r} is missing: give --{missing[0].replace('_', '-')}.")
    return _build(config, values)


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold an object with settings; got a {type(values).__name__}.")
    return values


def _value(text: str) -> Any:
    """`16` is a number, `[16, 20]` a list, `cosine` a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _build(config: type[Config], values: Mapping[str, Any]) -> Config:
    hints, given = get_type_hints(config), {}
    for field in fields(config):
        kind = hints[field.name]
        if is_dataclass(kind):
            given[field.name] = _build(kind, values)
        elif field.name in values:
            given[field.name] = _fitting(field.name, values[field.name], field.default)
    return config(**given)


def _fitting(name: str, value: Any, default: Any) -> Any:
    """The value as the setting's default has it: lists become tuples, one value a tuple of one, 1 becomes 1.0."""
    if isinstance(default, tuple):
        listed = value if isinstance(value, list | tuple) else [value]
        return tuple(tuple(item) if isinstance(item, list) else item for item in listed)
    if isinstance(default, str) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not MISSING and default is not None and type(value) is not type(default):
        raise InputError(f"{name} must be of type {type(default).__name__}; got {str(value)[:80]!r}.")
    return value


def run_trainer(
    name: str, args: argparse.Namespace, config: Config, train: Callable[[Config, Run], Mapping[str, Any] | None]
) -> int:
    """Begin or resume a run; returns the exit code, 0 when it is complete or was asked to stop.

    Args:
        train: gives the result for result.json, or None when the run was stopped.

    Raises:
        UqchatError: the folder is another run's, the data cannot be used, the disk is full.
    """
    settings = {"trainer": name, **json.loads(json.dumps(asdict(config), default=str))}
    is_main = int(os.environ.get("RANK", "0")) == 0
    run = Run(args.run_dir, settings, resume=args.resume, is_main=is_main)
    if run.is_complete:
        run.log(f"{run.path} is complete already")
        return 0
    with run:
        result = train(config, run)
        if result is None:
            run.stopped()
        else:
            run.finish(result)
    return 0


def run_finishable(
    name: str, args: argparse.Namespace, config: Config, train: Callable[..., Mapping[str, Any] | None]
) -> int:
    """`run_trainer` where `--finish` may be asked for: `train` is told by `is_last` to take the last checkpoint."""
    args.resume |= args.finish
    return run_trainer(name, args, config, partial(train, is_last=args.finish))
