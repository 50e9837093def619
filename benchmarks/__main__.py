"""`python -m benchmarks [NAME ...] [--repeats N] [--full]`: run benchmarks by name, the quick ones by default."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

import torch

from benchmarks.common import update_readme

HELPERS = ("__init__", "__main__", "common", "memory", "peer", "llama_cpp_peer", "lm_polygraph_peer")
SLOW = (
    "soak",
    "formats",
    "format_products",
    "format_quality",
    "llama_cpp",
    "lm_polygraph",
)  # only by name and with --full
NAMES = tuple(sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in HELPERS))


def main() -> None:
    """Run what was named and renew the README's table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--repeats", type=int, help="of every arm; default 3, with --full 9")
    parser.add_argument("--full", action="store_true", help="the slow ones too, and more repeats")
    options = parser.parse_args()
    repeats = options.repeats or (9 if options.full else 3)
    torch.set_num_threads(1)  # of the thread that makes what arms share: see `common.interleave`
    begun = time.perf_counter()
    for name in options.names or [name for name in NAMES if options.full or name not in SLOW]:
        start = time.perf_counter()
        importlib.import_module(f"benchmarks.{name}").main(repeats)
        print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)
    print(f"all of it took {(time.perf_counter() - begun) / 60:.1f} min")
    update_readme()


if __name__ == "__main__":
    main()
