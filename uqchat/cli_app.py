"""`uqchat app`: open the chat in a browser. Knows where `app.py` lies, not what the page looks like."""

from __future__ import annotations

import argparse
import os
import runpy
from typing import TextIO

from uqchat.config import GENERATION_FIELDS
from uqchat.errors import InputError
from uqchat.paths import ROOT


def run_app(args: argparse.Namespace, out: TextIO) -> None:
    """Start `app.py` with the arguments as settings. Raises InputError for options that belong to one answer."""
    given = vars(args)
    answer_options = {*GENERATION_FIELDS, "stop", "system", "estimators"} - {"stop_strings"}
    if unused := sorted(name for name in answer_options if given[name] is not None):
        names = ", ".join("--" + name.removesuffix("s").replace("_", "-") for name in unused)
        raise InputError(f"{names}: the page has its own controls for this; give it to `chat`, `answer` or `score`.")
    entry = ROOT / "app.py"
    if not entry.exists():
        raise InputError(f"{entry} is missing: run the page from a checkout, or install with `pip install -e .`.")
    for name in ("model", "dtype", "device", "quantization", "host", "port"):
        if given[name] is not None:
            os.environ[f"UQCHAT_{name.upper()}"] = str(given[name])
    runpy.run_path(str(entry), run_name="__main__")
