"""Starts the server with the page: theme, style sheets, scripts, login. Knows no handler."""

from __future__ import annotations

from typing import Any

import gradio as gr

from uqchat.config import AppConfig
from uqchat.paths import ASSETS
from uqchat.ports import open_port
from uqchat.ui.page import Page, build_page
from uqchat.ui.services import Services, open_services

_SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Noto Sans", "sans-serif")
_SYSTEM_MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
_SCRIPTS = ("uqchat-claims.js", "uqchat.js", "uqchat-page.js", "uqchat-playground.js")
_MAX_UPLOAD = "64mb"
_THREADS = 128  # each open stream waits in one; waiting is all it does


def serve(config: AppConfig) -> None:
    """Opens the page and blocks until the server ends. Answers under way are kept."""
    config.users(), open_port(config.host, config.port)  # what is wrong with these is told before a model is loaded
    services = open_services(config)
    try:
        launch(services)
    finally:
        close(services)


def launch(services: Services, **options: Any) -> Page:
    """Builds and launches the page; `options` go to `gr.Blocks.launch`."""
    config = services.config
    port = open_port(config.host, config.port)
    page = build_page(services)
    page.blocks.launch(
        **{
            "server_name": config.host,
            "server_port": port,
            "auth": config.users() or None,
            "show_error": False,
            "favicon_path": ASSETS / "favicon.png",
            "footer_links": [],
            "run_history": False,
            "enable_monitoring": False,
            "strict_cors": True,
            "max_file_size": _MAX_UPLOAD,
            "max_threads": _THREADS,
            "ssr_mode": False,
            "share": False,
            "theme": _theme(),
            "css_paths": [
                ASSETS / name for name in ("uqchat.css", "uqchat-icons.css", "uqchat-page.css", "uqchat-playground.css")
            ],
            "head": _scripts(),
            **options,
        }
    )
    return page


def close(services: Services) -> None:
    """Stops the answers, keeps what they wrote, and frees the model and the database."""
    services.conversations.close()
    services.host.close()
    services.store.close()


def _theme() -> gr.themes.Base:
    # Plain names instead of gradio's web fonts: the page asks no other host for anything.
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_SYSTEM_FONTS, font_mono=_SYSTEM_MONO)


def _scripts() -> str:
    files = [(ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    return "".join(f"<script>{text}</script>" for text in files)
