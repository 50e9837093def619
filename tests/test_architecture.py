"""Imports point one way, gradio stays in the page, files stay short, and no estimator is forgotten."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from uqchat.estimators import ESTIMATORS, TRAINED
from uqchat.paths import ROOT

# Top to bottom. A module may import from lower layers and from its own family, never from another family beside it.
# A family is one module that outgrew its file, or a package.
LAYERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("app", "__main__", "cli", "cli_*"),),
    (("ui", "ui.*"),),
    (("conversation", "conversation_*", "answer_run", "prompt_text"), ("transfer", "transfer_*")),
    (
        ("store", "store_*", "token_codec"),
        ("host", "host_*"),
        ("render", "render_*"),
        ("jobs", "jobs.*"),
        ("evaluation", "evaluation_*"),
    ),
    (("__init__", "language_model", "answering", "lagging"), ("marks",)),
    (
        ("scoring", "scoring_*"),
        ("selective", "selective_*"),
        ("artifacts", "artifact_folders"),
        ("head_check",),
        ("wrapping", "wrapping_*"),
        ("policy", "policy_*"),
    ),
    (("estimators", "estimators.*"),),
    (("engine", "engine.*"), ("heads", "heads.*"), ("calibration", "calibration_*", "scope")),
    (("features", "features_*"), ("restating",)),
    (
        (
            "models",
            "hub",
            "hub_files",
            "fingerprint",
            "origin",
            "artifact_files",
            "sources",
            "catalogue",
            "embedded",
            "embedded_*",
            "gguf_*",
            "loading",
            "placement",
            "own_memory",
            "weights",
            "int8",
            "four_bit",
        ),
        ("grading",),
        ("claims", "claims_*"),
        ("metrics", "metrics_*"),
        ("records", "records_*"),
    ),
    (("config",), ("types",)),
    (("ports",),),
    (("errors",), ("paths",), ("quick_imports",), ("teams",)),
)
HARD_LIMIT = 400  # lines


def sources() -> list[Path]:
    """Every Python file of the app and of the trainers."""
    folders = [folder for folder in (ROOT / "uqchat", ROOT / "trainers") if folder.is_dir()]
    return [ROOT / "app.py", *sorted(path for folder in folders for path in folder.rglob("*.py"))]


def module_of(path: Path) -> str:
    """`uqchat/engine/decode.py` -> `uqchat.engine.decode`; a package is named by its folder, the root by `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 2:
        parts = parts[:-1]
    return ".".join(parts)


def place_of(module: str) -> tuple[int, int]:
    """(layer, family) of a module's name without the leading `uqchat.`."""
    for depth, layer in enumerate(LAYERS):
        for number, family in enumerate(layer):
            if any(fnmatch(module, pattern) for pattern in family):
                return depth, number
    pytest.fail(f"{module} has no place in the layers: add it to LAYERS where it belongs")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, imports for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_for_types = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in only_for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (full_name(node.module or "", alias.name) for alias in node.names)


def full_name(module: str, name: str) -> str:
    """`from uqchat import errors` imports a module, `from uqchat.errors import UqchatError` a name of one."""
    candidate = ROOT / Path(*module.split("."), name)
    is_module = module.startswith("uqchat") and (candidate.with_suffix(".py").exists() or candidate.is_dir())
    return f"{module}.{name}" if is_module else module


def own(module: str) -> str:
    """A module's name inside `uqchat`; the package itself is `__init__`."""
    return module.removeprefix("uqchat").removeprefix(".") or "__init__"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    importer = module_of(path)
    if importer.startswith("trainers"):
        return
    layer, family = place_of(own(importer))
    for target in imports_of(path):
        assert not target.startswith("trainers"), f"{importer} imports {target}: nothing imports the trainers"
        is_version = own(target) == "__init__" and layer == 0
        if not target.startswith("uqchat") or is_version:
            continue
        other_layer, other_family = place_of(own(target))
        is_allowed = other_layer > layer or (other_layer, other_family) == (layer, family)
        assert is_allowed, f"{importer} must not import {target}: arrows point from the page to the engine"


@pytest.mark.parametrize("path", [p for p in sources() if module_of(p).startswith("trainers")], ids=str)
def test_trainers_import_nothing_above_scoring(path: Path) -> None:
    limit = place_of("scoring")[0]
    for target in imports_of(path):
        if target.startswith("uqchat"):
            assert place_of(own(target))[0] >= limit, f"{path.name} must not import {target}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_page_imports_gradio(path: Path) -> None:
    is_page = path.name == "app.py" or "ui" in path.parts
    assert is_page or not any(name.split(".")[0] == "gradio" for name in imports_of(path))


@pytest.mark.parametrize("module", ["uqchat.scoring", "uqchat.language_model", "uqchat.conversation", "uqchat.render"])
def test_everything_below_the_page_runs_without_gradio(module: str) -> None:
    code = f"import sys, {module}; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_do(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= HARD_LIMIT
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path} needs a module docstring"


def test_every_estimator_module_is_in_the_list() -> None:
    listed = {estimator.__module__ for estimator in (*ESTIMATORS, *TRAINED)}
    for path in (ROOT / "uqchat" / "estimators").glob("*.py"):
        if path.stem in ("__init__", "base"):
            continue
        module = importlib.import_module(module_of(path))
        has_estimator = any(hasattr(value, "score_token") for value in vars(module).values() if isinstance(value, type))
        assert not has_estimator or module.__name__ in listed, f"{module.__name__} is in no list of estimators"


def test_estimators_say_what_the_page_needs_and_have_names_of_their_own() -> None:
    listed = (*ESTIMATORS, *TRAINED)
    assert len({estimator.name for estimator in listed}) == len(listed)
    for estimator in listed:
        assert estimator.trainable == (estimator in TRAINED) == (estimator.format is not None)
        for attribute in ("name", "label", "level", "needs", "unit", "value_map", "trainable"):
            assert hasattr(estimator, attribute), f"{estimator.__name__} has no {attribute}"
