"""`python -m trainers prepare --model X`: from a language model to calibrated estimators, by the other commands.

Prints its plan first; every step can be killed and taken up again, and one that is done is not done twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainers.data import add_model_arguments
from trainers.prepare_plan import PRESETS, ModelFacts, Request, Source, Step, as_table, command_text, make_plan
from uqchat.artifact_folders import roots, slug_of
from uqchat.config import GenerationConfig
from uqchat.engine.backend import Request as Answering
from uqchat.engine.backend import StepEvent
from uqchat.engine.decode import Engine
from uqchat.errors import InputError, UqchatError
from uqchat.estimators import ESTIMATORS
from uqchat.models import LoadedModel, load_model
from uqchat.paths import ASSETS
from uqchat.scoring import refusal

OWN = Source("easy_facts", ASSETS / "data/easy_facts_train.jsonl", ASSETS / "data/easy_facts_eval.jsonl")
"""Questions that ship: nothing else is needed."""
TRIED = 16  # answers and tokens of each by which the speed is measured


class PrepareError(UqchatError):
    """A step failed, or there is no room for what is planned."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m trainers prepare`."""
    add_model_arguments(parser)
    parser.add_argument("--preset", choices=PRESETS, default="standard")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--questions", type=Path, nargs="+", default=(), help="files of questions; default: easy_facts")
    parser.add_argument("--eval-questions", type=Path, nargs="+", default=(), help="one for each of them, or none")
    parser.add_argument("--no-query", action="store_true", help="without the query, which takes most of the time")
    parser.add_argument("--work", type=Path, help="folder for answers, features and runs; default: beside the cache")
    parser.add_argument("--out", type=Path, help="folder for the estimators; default: where the app finds them")
    parser.add_argument("--max-disk", type=float, default=20.0, help="GB that the cached features may take")
    parser.add_argument("--seed", type=int, default=0)


def main(args: argparse.Namespace) -> int:
    """Plan, then run what is not done yet.

    Raises:
        UqchatError: the model or the questions cannot be read, there is no room, or a step failed.
    """
    model = load_model(args.model, args.device, args.dtype, args.quantization)
    slug = slug_of(model)
    work = args.work or roots()[0].parent / "prepare" / f"{slug}-{args.preset}"
    request = Request(
        _model_options(args),
        args.preset,
        _sources(args.questions, args.eval_questions),
        work,
        args.out or roots()[0] / slug,
        args.out is None,
        not args.no_query,
        args.seed,
    )
    steps = make_plan(request, facts_of(model))
    del model  # every step loads what it needs
    print(as_table(steps, [is_done(work, step) for step in steps]))
    print(f"answers, features, runs: {work}\nestimators: {request.estimators}")
    _require_room(work, [step for step in steps if not is_done(work, step)], args.max_disk)
    if args.dry_run:
        print("\n".join(command_text(step.command) for step in steps))
        return 0
    return run(work, steps)


def _model_options(args: argparse.Namespace) -> tuple[str, ...]:
    found = ["--model", args.model]
    for name in ("device", "dtype", "quantization"):
        if getattr(args, name):
            found += [f"--{name}", getattr(args, name)]
    return tuple(found)


def _sources(files: Sequence[Path], evaluation: Sequence[Path]) -> tuple[Source, ...]:
    if not files:
        return (OWN,)
    if evaluation and len(evaluation) != len(files):
        raise InputError(f"{len(files)} files of questions but {len(evaluation)} to evaluate; give one for each.")
    names = [path.stem.removesuffix("_train") for path in files]
    if len(set(names)) < len(names):
        raise InputError(f"Two files have the same name: {', '.join(map(str, files))}. Rename one.")
    held_out = evaluation or [None] * len(files)
    return tuple(Source(n, path, other) for n, path, other in zip(names, files, held_out, strict=True))


def facts_of(model: LoadedModel) -> ModelFacts:
    """Sizes of the model, what it can serve, and its speed on this machine, tried out for a moment."""
    engine = Engine(model.model, model.tokenizer)
    config = model.model.config.get_text_config()
    needs_no_more = [one for one in ESTIMATORS if one.level == "token" and refusal(one, engine.signals) is None]
    has_attention = engine.signals.attention_lags > 0
    written, read = _speeds(engine, model)
    return ModelFacts(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=getattr(config, "num_attention_heads", 0),
        weight_bytes=float(sum(p.numel() * p.element_size() for p in model.model.parameters())),
        has_attention=has_attention,
        tokens_per_second=written,
        read_per_second=read,
        untrained=tuple(one.name for one in needs_no_more if one.name in ("entropy", "max_prob", "margin", "rauq")),
    )


def _speeds(engine: Engine, model: LoadedModel) -> tuple[float, float]:
    """Tokens written and tokens read in a second, in a batch as `generate` has them."""
    text = model.tokenizer("A question of ordinary length, asked in a few words.", add_special_tokens=False)[
        "input_ids"
    ]
    prompts = [tuple([*text * 3, text[i % len(text)]][:48]) for i in range(TRIED)]
    times = []
    for tokens in (1, TRIED):
        config = GenerationConfig(max_new_tokens=tokens, temperature=1.0)
        begun = time.perf_counter()
        count = sum(isinstance(e, StepEvent) for e in engine.stream([Answering(p, config) for p in prompts]))
        times.append((time.perf_counter() - begun, count))
    read = sum(map(len, prompts)) / times[0][0]
    seconds, count = times[1][0] - times[0][0], times[1][1] - times[0][1]
    return max(count, 1) / max(seconds, 1e-3), read


def _require_room(work: Path, left: Sequence[Step], max_disk: float) -> None:
    needed = sum(step.disk for step in left)
    if needed > max_disk * 1e9:
        raise PrepareError(
            f"The plan needs about {needed / 1e9:.1f} GB on disk, --max-disk allows {max_disk:g}. Raise it, or take a"
            " smaller preset or fewer questions."
        )
    place = next(folder for folder in (work, *work.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed * 1.1 > free:
        raise PrepareError(
            f"The plan needs about {needed / 1e9:.1f} GB on disk, {place} has {free / 1e9:.1f}. Free some space, or"
            " name another folder with --work."
        )


def is_done(work: Path, step: Step) -> bool:
    """Whether this very command has been run to its end, and what it made is still there."""
    mark = _mark(work, step)
    return step.proof.exists() and mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == [*step.command]


def _mark(work: Path, step: Step) -> Path:
    return work / "done" / f"{step.name.replace(' ', '-')}.json"


def run(work: Path, steps: Sequence[Step]) -> int:
    """Run the steps that are not done, in order; 0 when all are done.

    Raises:
        PrepareError: one failed or was asked to stop; what was done stays done.
    """
    from trainers.__main__ import main as command

    for number, step in enumerate(steps, 1):
        if is_done(work, step):
            continue
        print(f"\n[{number}/{len(steps)}] {step.name}\n{command_text(step.command)}", file=sys.stderr, flush=True)
        begun = time.monotonic()
        code = command(step.command)
        if code != 0 or not step.proof.exists():
            raise PrepareError(
                f"{step.name} did not come to its end; the lines above say why. The same command goes on from here."
            )
        mark = _mark(work, step)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps([*step.command]), encoding="utf-8")
        print(f"{step.name}: {(time.monotonic() - begun) / 60:.1f} min", file=sys.stderr, flush=True)
    print("All done: the estimators are in the app's picker, their cards say how good they are.")
    return 0
