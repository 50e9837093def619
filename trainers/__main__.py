"""`python -m trainers <name>`: one shell for every trainer. Knows where each lies, and loads the named one.

A trainer's module has `add_arguments(parser)` and `main(args) -> int | None`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from uqchat.errors import UqchatError

# name -> module, what `--help` says of it
TRAINERS: dict[str, tuple[str, str]] = {
    "prepare": ("trainers.prepare", "from a language model to calibrated estimators, by the commands below"),
    "data": ("trainers.data", "questions to answers, labels and cached features"),
    "query": ("trainers.query", "a LoRA with which the model judges its own answers"),
    "query-calibrate": ("trainers.query_calibrate", "a trained query's calibration, and its risks for a report"),
    "uq-head": ("trainers.uq_head", "an uncertainty head on cached features"),
    "probe": ("trainers.probe", "small networks on cached hidden states"),
    "sweep": ("trainers.sweep", "settings of a trainer, chosen by sets it has not seen"),
    "vote": ("trainers.vote", "low-rank voters that share the base, each on its part of every batch"),
    "dropout": ("trainers.dropout", "a LoRA with dropout of what it reads"),
    "sculpt": ("trainers.sculpt", "a head that predicts the variance of logits, the base frozen"),
    "combination": ("trainers.combination", "a logistic combination of estimators"),
    "calibrate": ("trainers.calibrate", "raw scores to probabilities of error, with their scope"),
    "vote-scores": ("trainers.vote_scores", "what ensembles of voters say of cached answers, for comparing them"),
    "score": ("trainers.score", "risks of cached answers by estimators that must ask the model"),
    "records": ("trainers.records", "records for the threshold playground, from cached answers"),
    "selective": ("trainers.selective_table", "what thresholds buy, as tables, from records"),
    "tokens": ("trainers.token_report", "how well token risks point at what is wrong inside an answer"),
    "coverage": ("trainers.coverage_figure", "accuracy by share answered, as a table and a figure, from risks"),
    "report": ("trainers.metrics_report", "how well risks rank errors, set by set, with intervals"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named trainer; the exit code: 0 done, 1 refused with a sentence on stderr, 2 wrong usage."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("python -m trainers", epilog="python -m trainers <name> --help says more.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="<name>")
    for name, (_, text) in TRAINERS.items():
        commands.add_parser(name, help=text, add_help=False)
    name = parser.parse_args(argv[:1]).name
    module = importlib.import_module(TRAINERS[name][0])
    own = argparse.ArgumentParser(f"python -m trainers {name}", description=module.__doc__.split("\n")[0])
    module.add_arguments(own)
    try:
        return int(module.main(own.parse_args(argv[1:])) or 0)
    except UqchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
