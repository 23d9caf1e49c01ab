"""CSS of rendered Markdown: the colours of code in light and dark, and what the browser does not lay out by itself.

Scope: rules for the HTML of this package, inside any element of class "markdown".
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES

LIGHT, DARK = ("friendly", "#f6f7f9"), ("github-dark", "#161b22")
"""Pygments style and background of code."""
READABLE = 4.6
"""Contrast that every colour has at least; WCAG AA asks for 4.5."""

_RULES = Path(__file__).with_name("markdown.css")


@cache
def stylesheet() -> str:
    """All the rules, light and dark."""
    return _RULES.read_text() + _code_colours(".markdown .code", *LIGHT) + _code_colours(".dark .markdown .code", *DARK)


def _code_colours(selector: str, style: str, background: str) -> str:
    by_colour: dict[str, list[str]] = {}
    bold: list[str] = []
    for kind, look in get_style_by_name(style):
        name = STANDARD_TYPES.get(kind)
        if not name:
            continue
        if look["color"]:
            by_colour.setdefault(_readable(f"#{look['color']}", background), []).append(f".{name}")
        if look["bold"]:
            bold.append(f".{name}")
    plain = "#1f2328" if _luminance(background) > 0.5 else "#e6edf3"
    rules = [f"{selector} pre {{ background: {background}; color: {plain}; }}"]
    rules += [f"{selector} :is({', '.join(names)}) {{ color: {colour}; }}" for colour, names in by_colour.items()]
    return "\n".join([*rules, f"{selector} :is({', '.join(bold)}) {{ font-weight: 600; }}" if bold else ""]) + "\n"


def _readable(colour: str, background: str) -> str:
    """The colour, moved towards black or white until it can be read."""
    target = 0.0 if _luminance(background) > 0.5 else 255.0
    channels = [float(each) for each in _channels(colour)]
    while contrast(_hex(channels), background) < READABLE:
        channels = [each + (target - each) * 0.1 for each in channels]
    return _hex(channels)


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [each / 255 for each in _channels(colour)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _hex(channels: list[float]) -> str:
    return "#" + "".join(f"{round(each):02x}" for each in channels)
