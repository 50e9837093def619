"""`python -m uqchat` and the `uqchat` command."""

from __future__ import annotations

import sys

from uqchat.cli import main

if __name__ == "__main__":
    sys.exit(main())
