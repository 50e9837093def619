"""`python -m benchmarks [NAME ...] [--repeats N]`: run benchmarks by name, all of them by default."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.common import update_readme

HELPERS = ("__init__", "__main__", "common")
NAMES = tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in HELPERS))


def main() -> None:
    """Run what was named and renew the README's table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name in options.names or NAMES:
        importlib.import_module(f"benchmarks.{name}").main(options.repeats)
    update_readme()


if __name__ == "__main__":
    main()
