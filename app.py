"""Settings to page to server; also the entry of a Hugging Face Space."""

from __future__ import annotations

import os
import sys

from uqchat.errors import UqchatError
from uqchat.quick_imports import quick_imports


def main() -> None:
    """Read the settings and open the chat; a setting that cannot be used is named instead of a traceback."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    with quick_imports():
        from uqchat.config import read_config
        from uqchat.ui.serve import serve

    try:
        serve(read_config())
    except UqchatError as error:
        sys.exit(f"uqchat cannot start: {error}")


if __name__ == "__main__":
    main()
