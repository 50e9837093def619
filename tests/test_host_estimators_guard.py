"""Names of estimators that come from outside: where models may not be changed, only those on the list are opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles import wait_until
from tests.tiny import tiny_model
from uqchat.config import AppConfig, GenerationConfig
from uqchat.errors import ModelError, UqchatError
from uqchat.host import ModelHost
from uqchat.language_model import LanguageModel, drain

SHORT = GenerationConfig(max_new_tokens=3)


def host_with(allow_model_switch: bool) -> ModelHost:
    config = AppConfig(model="tiny", allow_model_switch=allow_model_switch)
    host = ModelHost(config, lambda *_args, **_options: LanguageModel(tiny_model()))
    host.start()
    wait_until(lambda: host.status().state == "ready")
    return host


@pytest.mark.parametrize("name", ["/etc", "organisation/head", "entropi"])
def test_a_visitor_names_no_folder_and_no_repository(name: str, tmp_path: Path) -> None:
    host = host_with(allow_model_switch=False)
    with pytest.raises(ModelError, match="no estimator .* Known: entropy, "):
        drain(host.stream("hello", (name,), SHORT))
    with pytest.raises(ModelError, match="no estimator"):
        host.score("hello", "ok", ("entropy", name))
    assert drain(host.stream("hello", ("entropy",), SHORT)).risks
    host.close()


def test_where_models_may_be_changed_any_folder_is_tried(tmp_path: Path) -> None:
    host = host_with(allow_model_switch=True)
    with pytest.raises(UqchatError, match="holds no trained estimator"):
        drain(host.stream("hello", (str(tmp_path),), SHORT))
    host.close()
