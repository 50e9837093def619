"""Where the files that ship with the source lie. Knows nothing of the folders a user chooses (see config.py)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout: `app.py`, `assets/` and the README lie here."""
ASSETS = ROOT / "assets"
"""Style sheet, script, icons and stored examples."""
