"""What a test does when the machine lacks something it needs. Knows no fixture."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test with the reason; on CI (the variable CI is set) a missing thing is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI must have it)", pytrace=False)
    pytest.skip(reason)
