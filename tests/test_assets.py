"""Claims about the style sheets and scripts: readable in both themes and in grey, no other host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parent.parent / "assets" / "uqchat.css").read_text(encoding="utf-8")


def palette(theme: str) -> dict[str, str]:
    """The colours of `:root` or `.dark`."""
    block = re.search(rf"^{re.escape(theme)} \{{(.*?)^\}}", CSS, re.S | re.M).group(1)
    return dict(re.findall(r"--uq-([\w]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio, WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root", ".dark"])
def test_text_reads_on_every_tint_and_the_tints_are_ordered_in_grey(theme: str) -> None:
    colours = palette(theme)
    for name in ("b0", "b1", "b2", "b3", "b4", "paper", "wash"):
        assert contrast(colours["ink"], colours[name]) >= 4.5, name
    assert contrast(colours["soft"], colours["paper"]) >= 4.5
    assert contrast(colours["soft"], colours["wash"]) >= 4.5
    tints = [luminance(colours[f"b{i}"]) for i in range(5)]
    assert tints == sorted(tints, reverse=theme == ":root")
    for i in range(1, 5):
        assert contrast(colours[f"m{i}"], colours[f"b{i}"]) >= 2.0, f"underline of bin {i}"


def test_each_bin_has_its_own_underline() -> None:
    styles = re.findall(r"\.uq-b[1-4] \{[^}]*underline (\w+) [\d.]+px", CSS)
    assert styles == ["dotted", "dashed", "solid", "double"]


def test_the_style_sheets_and_scripts_ask_no_other_host() -> None:
    for path in (Path(__file__).parent.parent / "assets").iterdir():
        if path.suffix in (".css", ".js"):
            text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|@import|url\((?!\"data:)", text), path.name
